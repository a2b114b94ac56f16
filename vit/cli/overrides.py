"""Overrides (`key=value`) as Hydra's parser reads them, once for all who use them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vit.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


class Overrides:
    """The overrides of a command or of one job of a sweep.

    Args:
        lines: as `prepare` or Hydra gives them.

    Attributes:
        lines, parsed: all of them, in order.

    Raises:
        OverrideParseException: of Hydra's, where one cannot be read.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self.lines = list(lines)
        self.parsed: list[Override] = OverridesParser.create().parse_overrides(self.lines)
        self._last = {override.key_or_group: override for override in self.parsed}

    @property
    def keys(self) -> frozenset[str]:
        """The keys and groups that are given."""
        return frozenset(self._last)

    def typed(self) -> dict[str, str]:
        """The text behind each `=`; of several to one key, the last."""
        return {key: _behind_equals(override) for key, override in self._last.items()}

    def text(self, key: str) -> str | None:
        """The last value of `key` as text without quotes; None: it is not given."""
        override = self._last.get(key)
        if override is None:
            return None
        value = override.value()
        return value if isinstance(value, str) else _behind_equals(override)

    @property
    def several(self) -> list[str]:
        """Those that ask for several runs: `model.depth=2,4`.

        Raises:
            ConfigError: a range without steps, which a search draws from.
        """
        from hydra.core.override_parser.types import IntervalSweep, Override

        several = []
        for override in filter(Override.is_sweep_override, self.parsed):
            line = str(override.input_line).lstrip("+")
            if isinstance(override.value(), IntervalSweep):
                raise ConfigError(
                    f"{line} has no end of values; give some (a,b or range(0,1,0.5)), or see "
                    f"sweep=asha_lr_wd"
                )
            several.append(line)
        return several

    def tried(self) -> dict[str, list[Any]]:
        """The values of each key that has several, but for choices of a `glob`."""
        from hydra.core.override_parser.types import Glob, Override, QuotedString

        return {
            override.key_or_group: [
                value.text if isinstance(value, QuotedString) else value
                for value in override.sweep_iterator()
            ]
            for override in filter(Override.is_sweep_override, self.parsed)
            if not isinstance(override.value(), Glob)
        }

    def written_out(self, groups: Mapping[str, Collection[str]]) -> list[str]:
        """The lines, each `glob` as the options that it means; Hydra would find `_base`, too."""
        from hydra.core.override_parser.types import Glob

        lines = []
        for line, override in zip(self.lines, self.parsed, strict=True):
            if isinstance(override.value(), Glob):
                names = self.choices(override.key_or_group, groups.get(override.key_or_group, ()))
                line = f"{line.partition('=')[0]}={','.join(names)}"
            lines.append(line)
        return lines

    def choices(self, group: str, options: Collection[str] = ()) -> list[str]:
        """The options that are picked of a config group that has `options`.

        Raises:
            ConfigError: a list, of which Hydra would merge the options into one; a `glob` of none.
        """
        from hydra.core.override_parser.types import ChoiceSweep, Glob

        override = self._last.get(group)
        if override is None:
            return []
        value = override.value()
        if isinstance(value, ChoiceSweep):
            names = [getattr(option, "text", option) for option in value.list]
            return ["null" if name is None else str(name) for name in names]
        if isinstance(value, Glob):
            if found := value.filter(list(options)):
                return found
            wrong = f"fits none of {', '.join(options)}" if options else "is for groups of options"
            raise ConfigError(f"{group}={_behind_equals(override)} {wrong}")
        if isinstance(value, (list, dict)):
            raise ConfigError(
                f"{group}={_behind_equals(override)} must be one name; several are tried with -m "
                f"{group}=<name>,<name>"
            )
        is_one = value is None or isinstance(value, (str, int, float))
        return [str(self.text(group))] if is_one else []


def _behind_equals(override: Override) -> str:
    return str(override.input_line).partition("=")[2]
