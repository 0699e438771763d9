"""Whose money has moved since somebody last asked: noted in memory by what charges it, and lost with the process.

For what is done about a spent budget later and elsewhere, so that a request pays for no more than a word in a table.
"""

from dataclasses import dataclass, field

ACCOUNTS_MAX = 10_000
"""Noted at once; of more it is only known that there were more."""

Account = tuple[str, str]
"""Owner and period of an account of money."""


@dataclass(slots=True)
class Noted:
    """What was noted. `accounts`: the allowance that was as good as spent when something was refused for it, or 0.
    Not `is_all`: there were more."""

    accounts: dict[Account, int] = field(default_factory=dict)
    is_all: bool = True


class Charged:
    """The accounts of money that one process has charged, until they are taken."""

    __slots__ = ("_noted",)

    def __init__(self) -> None:
        self._noted = Noted()

    def note(self, owner: str, period: str, spent_nanousd: int = 0) -> None:
        """It was charged; or, with `spent_nanousd`, that allowance was found as good as spent."""
        accounts, account = self._noted.accounts, (owner, period)
        if account in accounts:
            if spent_nanousd:
                accounts[account] = max(accounts[account], spent_nanousd)
        elif len(accounts) < ACCOUNTS_MAX:
            accounts[account] = spent_nanousd
        else:
            self._noted.is_all = False

    def take(self) -> Noted:
        """What was noted so far, once."""
        noted, self._noted = self._noted, Noted()
        return noted

    def give_back(self, noted: Noted) -> None:
        """Nothing was done about it."""
        for (owner, period), spent_nanousd in noted.accounts.items():
            self.note(owner, period, spent_nanousd=spent_nanousd)
        self._noted.is_all = self._noted.is_all and noted.is_all
