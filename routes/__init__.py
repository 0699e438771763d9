"""The surfaces: what agents and operators can call, one declarative file per vendor.

Owns: which operations exist, what they may carry, how their usage is read, how their errors are worded.
Does not own: how a request is served (`proxy`), what usage costs and who may (`metering`).
Invariants: what is not declared is 404; every operation has an example from which it is tested; a file
here does no I/O and knows no other vendor.
"""

from proxy.surface import Surface
from routes import agentmail, anthropic, bland, brave, browserbase, call, email, gemini, openai

SURFACES: tuple[Surface, ...] = (
    anthropic.SURFACE,
    openai.SURFACE,
    gemini.SURFACE,
    brave.SURFACE,
    agentmail.SURFACE,
    browserbase.SURFACE,
    bland.SURFACE,
    email.SURFACE,
    call.SURFACE,
)
