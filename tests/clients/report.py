"""How a check tells what came of it: a line each, the same for every client in every language.

ok NAME  |  FAILED NAME: why  |  skip NAME: why  |  says NAME: what a person reads there
"""

import re

COUNTED = ("ok", "FAILED", "skip")
counts = dict.fromkeys(COUNTED, 0)


class Skip(Exception):
    """Raised by a check that cannot be made here."""


def check(name):
    """Runs the decorated function at once and reports how it went."""

    def run(function):
        try:
            function()
        except Skip as why:
            tell("skip", name, why)
        except Exception as why:  # whatever a client throws at us is the finding
            kind = "" if isinstance(why, AssertionError) else f"{type(why).__name__}: "
            tell("FAILED", name, f"{kind}{why}")
        else:
            tell("ok", name)
        return function

    return run


def says(name, text):
    """Shows what a person reads at this place; it is judged by eyes, and by `expect_refusal`."""
    tell("says", name, text)


def tell(word, name, text=None):
    if word in counts:
        counts[word] += 1
    text = "" if text is None else ": " + one_line(str(text))
    print(f"{word} {name}{text}", flush=True)


def one_line(text):
    """Without the escape codes of a terminal, with ` | ` for each line's end."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())


def relay(line, where=""):
    """Passes on a line that another program printed in this form; False when it is not one."""
    word, _, rest = line.partition(" ")
    if word not in (*COUNTED, "says"):
        return False
    if word in counts:
        counts[word] += 1
    print(f"{word} {where}{rest}", flush=True)
    return True


def expect(condition, why):
    if not condition:
        raise AssertionError(why)


def expect_refusal(name, shown, gate_says):
    """The text that the client shows is printed, and must hold what the gate said."""
    says(name, shown)
    expect(gate_says in str(shown), f"the gate said {gate_says!r}, the client shows {shown!s:.300}")
