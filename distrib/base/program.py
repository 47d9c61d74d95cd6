"""What all programs do alike: their streams, and how an error of the user's and Ctrl-C end them."""

import sys
from collections.abc import Callable, Sequence
from functools import wraps

from distrib.base.errors import OutOfMemory, UserError, out_of_memory
from distrib.base.streams import standard_streams


def program(main: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """The `main` of a program, which takes its command line and returns its exit status.

    What the user can mend ends it with a sentence on standard error and status 2, or 3 where memory has run out, Ctrl-C
    quietly with 130. What is printed goes through `standard_streams`.
    """

    @wraps(main)
    @standard_streams()
    def run(argv: Sequence[str]) -> int:
        try:
            return main(argv)
        except UserError as error:
            print(f"distrib: error: {error}", file=sys.stderr, flush=True)
            return error.exit_status
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            remedy = "end other programs that use it, or use a device that has more"
            print(f"distrib: error: {OutOfMemory(str(error), remedy)}", file=sys.stderr, flush=True)
            return OutOfMemory.exit_status
        except KeyboardInterrupt:
            return 130

    return run
