"""Why an answer ended, in the words of many providers."""

from __future__ import annotations

import re
from enum import Enum

__all__ = ["Ending", "ending_of"]


class Ending(Enum):
    """What a finish reason means for the answer. The values are pydantic-ai's own words for it."""

    WHOLE = "stop"
    LENGTH = "length"
    FILTERED = "content_filter"
    INTERRUPTED = "error"
    UNKNOWN = ""


# As providers document them, without case and marks: `end_turn` and `endTurn` are one. Where two providers
# mean different things by one word, the cautious meaning stands.
_EXACT = {
    Ending.WHOLE: """
        stop stopped end ended endturn endoftext endofturn endofsequence eos eostoken eosfound stopeos
        stoppedeos stopsequence stopsequences stopstring stopstringfound stopword stoppedword stoptoken word
        toolcall toolcalls tooluse functioncall functioncalls function toolcallsstop complete completed
        completion done finish finished success succeeded normal ok pauseturn s imend eot eotid eom streamend
    """,
    Ending.LENGTH: """
        length maxtoken maxtokens maxlength maxlen maxoutput maxoutputtokens maxcontext maxcompletiontokens
        maxnewtokens maxgentokens maxpredictedtokensreached maxtokensreached maxmessages modellength
        modelcontextwindowexceeded contextlength contextlengthexceeded contextlengthreached contextwindow
        contextwindowexceeded tokenlimit tokenslimit tokenlimitreached limit stoppedlimit outputlimit
        errorlimit truncated lengthlimit
    """,
    Ending.FILTERED: """
        contentfilter contentfiltered contentfiltering filter filtered safety imagesafety recitation blocklist
        prohibitedcontent spii refusal refused sensitive moderation guardrailintervened guardrail errortoxic
        toxic blocked ban banned language policyviolation
    """,
    Ending.INTERRUPTED: """
        error errors failed failure fail abort aborted cancel canceled cancelled usercancel userstopped
        modelunloaded interrupted timeout timedout timelimit networkerror insufficientsystemresource
        incomplete serviceunavailable unavailable overloaded ratelimit ratelimited disconnect disconnected
        malformedfunctioncall malformedresponse unexpectedtoolcall preempted evicted
    """,
}

_MEANINGS = {word: ending for ending, words in _EXACT.items() for word in words.split()}

_PARTS = (
    (Ending.FILTERED, ("filter", "safety", "refus", "prohibited", "moderat", "guardrail", "sensitive")),
    (Ending.FILTERED, ("policy", "policies")),
    (Ending.INTERRUPTED, ("error", "fail", "abort", "cancel", "interrupt", "timeout", "timelimit")),
    (Ending.INTERRUPTED, ("unavailable", "overload", "disconnect", "network", "systemresource", "ratelimit")),
    (Ending.INTERRUPTED, ("connection", "timedout", "shutdown", "preempt", "evict", "kill", "crash")),
    (Ending.INTERRUPTED, ("incomplete", "partial", "restart", "unload")),
    (Ending.LENGTH, ("maxtoken", "maxoutput", "maxlen", "length", "tokenlimit", "contextwindow", "truncat")),
)
"""Parts of words that nobody has documented yet, the cautious meaning first."""

_MARKS = re.compile(r"[^a-z0-9]+")
_PREFIX = re.compile(r"^(?:finish|stop|done)?reason")


def ending_of(reason: object) -> Ending:
    """What a provider's finish reason means.

    Args:
        reason: As the provider writes it, such as ``"stop"``, ``"END_TURN"``, ``"FinishReason.MAX_TOKENS"``.
    """
    word = _MARKS.sub("", str(getattr(reason, "value", reason)).strip(" .").rpartition(".")[2].lower())
    word = _PREFIX.sub("", word) or word
    found = _MEANINGS.get(word)
    if found is not None:
        return found
    return next((ending for ending, parts in _PARTS if any(part in word for part in parts)), Ending.UNKNOWN)
