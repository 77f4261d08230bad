"""ReMix in the APIs of other libraries: PEFT's, which the extra `peft` brings."""

from remix_runtime.extras import require_extra

require_extra("remix_runtime.interop", "peft", "peft")
