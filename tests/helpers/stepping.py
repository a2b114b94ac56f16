"""What the tests of a step share: small models, batches, and one step."""

import io
from dataclasses import astuple

import torch
import yaml
from pictures import CPU

from vit.config.schema import OptimConfig, TrainerConfig
from vit.config.yaml_files import config_dir
from vit.data.types import Batch
from vit.model.vit import VisionTransformer
from vit.optim.build import build_optimizer
from vit.optim.ema import Ema
from vit.runtime.dist import World
from vit.training.loss import Loss
from vit.training.state import TrainState
from vit.training.step import train_step

CLASSES = 7
ADAMW = OptimConfig(
    name="adamw", lr=1e-3, other_lr=1e-3, weight_decay=0.1, layer_decay=1.0, betas=[0.9, 0.999],
    momentum=0.95, clip_norm=1.0, options={},
)  # fmt: skip


def trainer(**changes):
    """The settings of configs/trainer/default.yaml, in fp32."""
    plain = yaml.safe_load((config_dir() / "trainer" / "default.yaml").read_text())
    return TrainerConfig(**{**plain, "precision": "fp32", "batch_size": 8, **changes})


def model(**changes):
    """A small model whose head and class token do not start at zero."""
    torch.manual_seed(0)
    built = VisionTransformer(8, 4, CLASSES, dim=16, depth=2, heads=2, **changes)
    torch.nn.init.normal_(built.head.weight)
    torch.nn.init.normal_(built.cls_token)
    return built


def sgd_state(ema=None, **changes):
    """With SGD at a rate of 1 a step's gradient is what the weights moved by."""
    built = model(**changes)
    optimizer = torch.optim.SGD(built.parameters(), lr=1.0, fused=True)
    return TrainState(built, ema and Ema(built, ema), optimizer, CPU)


def adamw_state(ema=None, **changes):
    built = model(**changes)
    optimizer = build_optimizer(built, ADAMW)
    return TrainState(built, ema and Ema(built, ema), optimizer, CPU)


def batch(number=0, size=8):
    generator = torch.Generator().manual_seed(number)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    targets = torch.rand(size, CLASSES, generator=generator).softmax(dim=1)
    return Batch(torch.randn(size, 3, 8, 8, generator=generator), labels, targets)


def train(state, data, lr=1.0, seed=0, rank=0, clip_norm=None, **changes):
    world = World(rank)  # of one, whatever its rank: nobody to wait for
    config = trainer(**changes)
    train_step(
        state, data, lr, seed=seed, world=world, config=config, loss=Loss(config),
        clip_norm=clip_norm, device=CPU,
    )  # fmt: skip
    return weights(state.model)


def bad_steps(state):
    """In a row, at most in a row, in all, and the last one."""
    state.metric_sums()
    return list(astuple(state.non_finite))


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def saved(state):
    """A state as a checkpoint holds it: nothing shared with the live one."""
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_equal(a, b):
    """Nested containers hold the same bits."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b
