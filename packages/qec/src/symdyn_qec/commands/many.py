"""Options that take several values in a row: ``--distance 3 5`` besides ``--distance 3 --distance 5``."""

from collections.abc import Callable, Mapping, Sequence


def spread(arguments: Sequence[str], options: Mapping[str, Callable[[str], bool]]) -> list[str]:
    """Repeat an option's name before each of the values that follow it.

    Args:
        arguments: command line words.
        options: name of an option that may take several values -> whether a word is one. The first word after
            the name is always taken as its value, so that a wrong one is reported and not mistaken for
            something else.

    Returns:
        The same command line with one value per option, which every parser understands.

    >>> spread(["--distance", "3", "5", "a.stim"], {"--distance": str.isdigit})
    ['--distance', '3', '--distance', '5', 'a.stim']
    """
    words: list[str] = []
    option, given = "", 0
    for index, word in enumerate(arguments):
        if word == "--":
            return words + list(arguments[index:])
        name = word.split("=")[0]
        if name in options:
            option, given = name, int("=" in word)
        elif option and not given:
            given = 1
        elif option and options[option](word):
            words.append(option)
        else:
            option = ""
        words.append(word)
    return words
