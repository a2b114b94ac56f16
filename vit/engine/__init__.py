"""Where data, model, optimiser and artifacts meet: training, evaluation, restore."""
