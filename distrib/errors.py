"""The one exception that is the user's to mend."""


class UserError(Exception):
    """A wrong setting, file or picture: one sentence with what, where, found, expected and the remedy.

    Every program in this package prints it without a traceback and leaves with exit status 2.

    Attributes:
        on_all_ranks: whether every rank raises the same, so that rank 0 alone prints it.
    """

    exit_status = 2

    def __init__(self, sentence: str, on_all_ranks: bool = False) -> None:
        super().__init__(sentence)
        self.on_all_ranks = on_all_ranks
