"""Who works on which instance, when, and how many at once; and the looks that nobody asked for: at budgets, at Fly's lists."""

import asyncio
import logging
from contextlib import suppress

from metering.errors import Refused
from metering.plans import Plans
from metering.tasks import keep, spawn, stop
from provisioning.budget import over_budget
from provisioning.errors import SupersededError
from provisioning.instances import ERROR, Claim, Instances
from provisioning.lifecycle import follow
from provisioning.reconcile import Reconciled, reconcile
from provisioning.run import Parts

logger = logging.getLogger(__name__)

CLAIM_S = 60.0
"""Of an instance: if its worker dies, others wait so long."""
RENEW_EVERY_S = 15.0
MISSED_MAX = 3
"""Renewals in a row: with the next one, the claim would have ended."""
LEAVE_AFTER_S = 5.0
"""Of a claim whose work was cut: what it was just asking for has happened by then, or never will."""
LOOK_EVERY_S = 0.5
"""Between two looks for what is due."""
AWAY_ATTEMPTS_WAITED = 2
"""Failures to take away what was given up, for which somebody waits."""
BUDGETS_EVERY_S = 30.0
RECONCILE_TURN = "reconcile"


class Provisioner:
    """One worker's hand in the machines of all users. `at_once`: instances it works on; `plans`: None, nobody is suspended over
    budget; `reconcile_every_s`: 0, never; `repairs`: what a look finds is mended, too."""

    def __init__(
        self,
        parts: Parts,
        worker_id: str,
        *,
        at_once: int,
        plans: Plans | None = None,
        reconcile_every_s: float = 0.0,
        repairs: bool = False,
    ) -> None:
        self._parts = parts
        self._instances: Instances = parts.machines.instances
        self._worker_id = worker_id
        self._at_once = at_once
        self._plans = plans
        self._reconcile_every_s = reconcile_every_s
        self._repairs = repairs
        self._working: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()

    async def keep_working(self) -> None:
        """For ever; a store in trouble is waited out. Cancelled, what is under way is left to the next worker."""
        looks = [keep(self._keep_looking_at_budgets, name="machines over budget")]
        if self._reconcile_every_s:
            looks.append(keep(self._keep_reconciling, name="machines reconciled"))
        try:
            while True:
                self._freed.clear()
                try:
                    while len(self._working) < self._at_once and (claim := await self._claim()) is not None:
                        self._start(claim)
                except Refused as error:  # the store has said what is wrong with it
                    logger.debug("no look for machines: %s", error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._freed.wait()
        finally:
            await asyncio.gather(*map(stop, [*looks, *self._working]))

    async def work_once(self, user_id: str = "") -> bool:
        """One run of what is due for longest, or of this user's; whether there was any. Raises Refused(STORE_UNAVAILABLE)."""
        claim = await self._claim(user_id)
        if claim is None:
            return False
        await self._work(claim)
        return True

    async def work_on(self, user_id: str) -> None:
        """Until nothing is to be done for this user's machine, by us or whoever has it; or it is given up, and taking away what was
        made does not go well either: that goes on without us. Raises Refused(STORE_UNAVAILABLE)."""
        while True:
            if await self.work_once(user_id):
                continue
            instance = await self._instances.of(user_id)
            if instance is None or instance.is_settled:
                return
            if instance.status == ERROR and instance.attempts >= AWAY_ATTEMPTS_WAITED:
                return
            await self._parts.pause(LOOK_EVERY_S)

    async def reconcile(self, *, repairs: bool) -> Reconciled:
        """One look at what Fly has, beside what is on record. Raises FlyError, Refused(STORE_UNAVAILABLE)."""
        return await reconcile(self._parts, repairs=repairs)

    async def _claim(self, user_id: str = "") -> Claim | None:
        if not await self._instances.is_any_due(user_id):
            return None
        return await self._instances.claim(self._worker_id, for_s=CLAIM_S, user_id=user_id)

    def _start(self, claim: Claim) -> None:
        task = spawn(self._work(claim), name=f"machine of {claim.instance.user_id}")
        self._working.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        self._freed.set()

    async def _work(self, claim: Claim) -> None:
        """One run under a claim that is renewed meanwhile; lost, the run is cut where it stands."""
        following = spawn(follow(self._parts, claim), name="follow")
        renewing = spawn(_keep_claimed(claim), name="claim")
        try:
            await asyncio.wait({following, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_done = following.done()
            await stop(following)
            await stop(renewing)
            with suppress(Refused):
                await claim.release(after_s=0.0 if is_done else LEAVE_AFTER_S)
        if is_done:
            with suppress(SupersededError, Refused):
                following.result()

    async def _keep_looking_at_budgets(self) -> None:
        """Once where nobody is to be suspended for that: for those who were, before that was set."""
        while True:
            try:
                for user_id, is_over in await over_budget(self._instances, self._plans):
                    await self._instances.set_over_budget(user_id, is_over=is_over)
                if self._plans is None:
                    return
            except Refused as error:
                logger.debug("no look at budgets: %s", error)
            except Exception:
                logger.exception("the budgets of machines' users are not looked at")
            await asyncio.sleep(BUDGETS_EVERY_S)

    async def _keep_reconciling(self) -> None:
        """One worker of all, each time."""
        while True:
            await asyncio.sleep(self._reconcile_every_s)
            try:
                if await self._instances.take_turn(RECONCILE_TURN, every_s=self._reconcile_every_s):
                    found = await self.reconcile(repairs=self._repairs)
                    for finding in found.findings:
                        logger.warning("machines: %s", finding.line)
            except Refused as error:
                logger.debug("machines are not reconciled: %s", error)
            except Exception:
                logger.exception("machines are not reconciled")


async def _keep_claimed(claim: Claim) -> None:
    """Renew it until it is lost, or the store takes nothing for so long that others may have it."""
    missed = 0
    while missed < MISSED_MAX:
        await asyncio.sleep(RENEW_EVERY_S)
        try:
            await claim.renew()
            missed = 0
        except SupersededError:
            return
        except Refused as error:
            missed += 1
            logger.debug("a machine's claim is not renewed: %s", error)
