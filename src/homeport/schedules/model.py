"""When a schedule is due. Pure: times in, times out; all of them Unix seconds."""

from __future__ import annotations

import calendar
import math
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from homeport.kernel.errors import InvalidError

PERIOD_MIN_S: Final = 1.0
"""Shorter periods are refused: they are a loop, not a schedule."""
CLOCK_ERROR_S: Final = 86400.0
"""A clock that was set back by less is taken to repeat an hour, by more to have been wrong."""

_FIELDS: Final = 5
_NICKNAMES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_CRON_HELP: Final = (
    "It has five fields (minute, hour, day of month, month, day of week), as in '5 4 * * 1-5'."
)


class Cron(msgspec.Struct, frozen=True, tag="cron"):
    """A crontab expression, read in a time zone (an IANA name; empty = UTC)."""

    expression: str
    timezone: str = ""

    def check(self) -> None:
        """Raises ``InvalidError`` for an expression or a zone that cannot be read."""
        self._zone()
        now = datetime(2024, 1, 1, tzinfo=UTC).timestamp()
        if self.first_after(now, 0.0) == math.inf:
            raise InvalidError(f"Cron expression {self.expression!r} names a day that never comes.")

    def first_after(self, time: float, anchor: float) -> float:
        """The first due moment after ``time``; infinite if there is none."""
        return self._seek(time, reverse=False)

    def last_until(self, time: float, anchor: float) -> float:
        """The last due moment not after ``time``; minus infinity if there is none."""
        return self._seek(time + 1e-6, reverse=True)

    def _seek(self, time: float, *, reverse: bool) -> float:
        start = datetime.fromtimestamp(time, self._zone())
        for moment in self._moments(start, reverse):
            found = moment.timestamp()
            # Around the end of summer time the search starts at a time of day that is there twice
            # and may begin with the wrong one of the two.
            if found < time if reverse else found > time:
                return found
        return -math.inf if reverse else math.inf

    def _moments(self, start: datetime, reverse: bool) -> CronSim:
        text = self.expression.strip()
        expression = _NICKNAMES.get(text.lower(), text)
        if len(expression.split()) != _FIELDS:
            raise InvalidError(
                f"Cron expression {text!r} has {len(expression.split())} fields. {_CRON_HELP}"
            )
        try:
            return CronSim(expression, start, reverse=reverse)
        except CronSimError as error:
            raise InvalidError(
                f"Cron expression {text!r} cannot be read: {str(error).lower()}. {_CRON_HELP}"
            ) from None

    def _zone(self) -> tzinfo:
        name = self.timezone.strip()
        if name in ("", "UTC"):
            return UTC
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            raise InvalidError(
                f"Time zone {name!r} is not known: use an IANA name such as 'Europe/Berlin'."
            ) from None

    def __str__(self) -> str:
        zone = f", timezone={self.timezone!r}" if self.timezone not in ("", "UTC") else ""
        return f"Cron({self.expression!r}{zone})"


class Period(msgspec.Struct, frozen=True, tag="period"):
    """A distance between due moments, the first of them one distance after the anchor.

    Years and months follow the calendar (the 31st of a shorter month is its last day), the rest
    has a fixed length; all in UTC.
    """

    years: int = 0
    months: int = 0
    weeks: int = 0
    days: int = 0
    hours: int = 0
    minutes: int = 0
    seconds: float = 0.0

    @property
    def _months(self) -> int:
        return 12 * self.years + self.months

    @property
    def _fixed_s(self) -> float:
        days = 7 * self.weeks + self.days
        return 86400.0 * days + 3600.0 * self.hours + 60.0 * self.minutes + self.seconds

    def check(self) -> None:
        """Raises ``InvalidError`` for one that is too short, negative or beyond the calendar."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        if any(value < 0 or not math.isfinite(value) for value in values.values()):
            raise InvalidError(f"{self} has a part that is negative or not a number.")
        if not self._months and self._fixed_s < PERIOD_MIN_S:
            raise InvalidError(
                f"{self} is shorter than {PERIOD_MIN_S:g} s, the shortest period there is: "
                "loop inside the function instead."
            )
        if self._months + self._fixed_s / 2_419_200 > 12 * 1000:
            raise InvalidError(f"{self} is longer than a thousand years.")

    def _moment(self, anchor: float, number: int) -> float:
        if not self._months:
            return anchor + number * self._fixed_s
        start = datetime.fromtimestamp(anchor, UTC)
        years, month = divmod(start.month - 1 + number * self._months, 12)
        if start.year + years > 9998:
            return math.inf
        day = min(start.day, calendar.monthrange(start.year + years, month + 1)[1])
        there = start.replace(year=start.year + years, month=month + 1, day=day)
        try:
            return (there + timedelta(seconds=number * self._fixed_s)).timestamp()
        except OverflowError:
            return math.inf

    def _number_after(self, time: float, anchor: float) -> int:
        """The number (from 1) of the first due moment after ``time``."""
        longest = self._months * 31 * 86400.0 + self._fixed_s
        number = max(1, int((time - anchor) / longest))
        while self._moment(anchor, number) <= time:
            number += 1
        return number

    def first_after(self, time: float, anchor: float) -> float:
        """The first due moment after ``time``; infinite if there is none."""
        return self._moment(anchor, self._number_after(time, anchor))

    def last_until(self, time: float, anchor: float) -> float:
        """The last due moment not after ``time``; minus infinity if there is none."""
        number = self._number_after(time, anchor) - 1
        return self._moment(anchor, number) if number else -math.inf

    def __str__(self) -> str:
        parts = [
            f"{name}={value:g}" for name in self.__struct_fields__ if (value := getattr(self, name))
        ]
        return f"Period({', '.join(parts)})"


Schedule = Cron | Period


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The schedule of one deployed function and how far it has come."""

    function_id: str
    app_id: str
    schedule: Schedule
    anchor: float
    """From when on it counts: when it was first deployed like this."""
    next_at: float
    last_at: float = 0.0
    """The due moment that was run last; 0 = none yet."""

    @classmethod
    def begin(cls, function_id: str, app_id: str, schedule: Schedule, now: float) -> Entry:
        """A schedule that counts from ``now`` on."""
        return cls(
            function_id=function_id,
            app_id=app_id,
            schedule=schedule,
            anchor=now,
            next_at=schedule.first_after(now, now),
        )

    def due(self, now: float) -> Due | None:
        """The run that has come due by ``now``: of several that were missed, the latest."""
        if self.next_at > now:
            return None
        latest = max(self.next_at, self.schedule.last_until(now, self.anchor))
        after = msgspec.structs.replace(
            self, last_at=latest, next_at=self.schedule.first_after(now, self.anchor)
        )
        return Due(at=latest, after=after, has_missed=latest > self.next_at)

    def adjusted(self, now: float) -> Entry:
        """As it should be when the clock may have been set, or the zone's rules have changed.

        What was run is not run again, unless the clock was so far ahead that what it showed then
        cannot be trusted.
        """
        if self.next_at <= now:
            return self
        was_run_until = self.last_at if self.last_at - now < CLOCK_ERROR_S else 0.0
        next_at = self.schedule.first_after(max(now, was_run_until), self.anchor)
        return msgspec.structs.replace(self, next_at=next_at)


class Due(msgspec.Struct, frozen=True):
    """A run that is to be made now."""

    at: float
    after: Entry
    """The entry once it has been made."""
    has_missed: bool
    """Whether earlier ones are passed over."""
