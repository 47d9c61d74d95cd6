"""What can be said of the options of a report before anything is trained, without torch."""

from distrib.base.errors import UserError
from distrib.base.words import nearest
from distrib.config import Config, ExplainConfig
from distrib.data.table import Table
from distrib.explaining.grid import make_grid
from distrib.explaining.modules import check_modules


def check_options(config: Config, table: Table) -> None:
    """Refuse what would only fail at the end of a training.

    Args:
        config: whose `explain` is checked.
        table: with all of the data set's attributes.

    Raises:
        UserError: if a module or the group is not there, or the window does not fit the image.
    """
    options = config.explain
    check_modules(options.modules, options.filters)
    window, stride = ((side, side) if side is not None else None for side in (options.window, options.stride))
    make_grid(config.data.image_size, window, stride)
    if options.group != ExplainConfig().group and options.group not in table.attributes:
        raise unknown_group(config, table)


def unknown_group(config: Config, table: Table) -> UserError:
    """What to say of an `explain.group` that is not in the table with all of the data set's attributes."""
    group = config.explain.group
    flaw = table.flaws.get(group)
    hint = f" ({flaw.what})" if flaw else nearest(group, table.attributes)
    return UserError(
        f"explain.group {group} is not an attribute of {config.data.root}{hint}: choose one of "
        f"{', '.join(table.attributes)}"
    )


def check_photograph(config: Config) -> None:
    """Refuse a photograph that is not there.

    Raises:
        UserError: naming it.
    """
    photograph = config.explain.photograph
    if photograph is not None and not photograph.is_file():
        raise UserError(f"explain.photograph {photograph} is not a file: name a photograph, or leave it out")
