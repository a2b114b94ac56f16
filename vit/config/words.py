"""What other trainers call our settings: words of timm, ultralytics, Lightning and transformers."""

from __future__ import annotations

import re

WORDS = {
    "epochs max_epochs num_epochs num_train_epochs": "trainer.epochs={}",
    "max_steps num_steps total_steps": "trainer.steps={}",
    "batch bs b train_batch_size per_device_train_batch_size": "trainer.batch_size={}",
    "batch bs b": "batch_size={}", "lr lr0 learning_rate base_lr lr_base": "optim.lr={}",
    "wd": "optim.weight_decay={}",
    "clip_grad gradient_clip_val max_grad_norm grad_clip": "optim.clip_norm={}",
    "opt optimizer": "optim={}", "sched scheduler lr_scheduler lr_scheduler_type": "schedule={}",
    "warmup_epochs": "schedule.warmup={}ep",
    "imgsz img_size input_size resolution": "data.image_size={}",
    "source data_dir data_path img_dir": "images={}",
    "data_dir data_path train_dir": "data=folder data.root={}", "dataset": "data={}",
    "num_workers dataloader_num_workers j": "data.workers={}",
    "pretrained": "experiment=finetune model.weights=timm/<model>",
    "initial_checkpoint weights": "experiment=finetune model.weights={}",
    "ckpt_path resume_from_checkpoint": "resume={}",
    "ckpt_path weights ckpt model model_path": "checkpoint={}", "drop": "model.dropout={}",
    "precision amp_dtype": "trainer.precision={}",
    "amp fp16 bf16 half mixed_precision": "trainer.precision=auto",
    "accelerator gpus": "trainer.device=cuda",
    "accumulate_grad_batches grad_accum_steps gradient_accumulation_steps": "trainer.accumulate={}",
    "grad_checkpointing gradient_checkpointing": "trainer.checkpoint_activations=true",
    "torchcompile torch_compile": "trainer.compile=true",
    "patience early_stopping early_stopping_patience": "trainer.early_stop={}",
    "smoothing": "trainer.label_smoothing={}", "reprob": "augment.erasing={}",
    "hflip fliplr": "augment.flip={}", "aa auto_augment": "augment.policy={}",
    "output output_dir project default_root_dir save_dir": "outputs={}",
    "project output_dir save_dir": "output={}", "run_name exp_name experiment_name": "name={}",
    "log_interval log_every_n_steps logging_steps": "trainer.log_every={}",
    "topk top_k": "top={}",
    "logger wandb log_wandb report_to": "every run writes TensorBoard and metrics.jsonl",
    "num_classes nc": "the classes are those of the data",
    "import": "it counts on the command line alone; nothing was loaded",
    "devices num_nodes": "torchrun --nproc-per-node <devices> -m vit.cli.train takes several",
}  # fmt: skip
"""Words, and the overrides that say the same here; the last is the setting, `{}` what was given. A
later line is for commands that lack the setting of an earlier one.
"""
VALUES = {
    "half": "fp16", "float16": "fp16", "16-mixed": "fp16", "bfloat16": "bf16",
    "bf16-mixed": "bf16", "float32": "fp32",
}  # fmt: skip
"""Values, and what they are called here."""
_TIMM = re.compile(r"(?:timm/)?(?:vit|deit3?)_(tiny|small|base|large)_\w*?patch(\d+)_(\d+)\b.*")


def timm_shape(name: str) -> str | None:
    """A model of timm's, `vit_small_patch16_224`, as our settings; None: no such name."""
    if not (found := _TIMM.fullmatch(name)):
        return None
    size, patch, side = found.groups()
    return (
        f"model={size} model.patch_size={patch} data.image_size={side}, with its weights "
        f"experiment=finetune model.weights=timm/{name.removeprefix('timm/')}"
    )
