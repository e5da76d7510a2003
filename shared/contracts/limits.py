"""The one table of limits: the validator, the core and the topic settings read it, nobody else has numbers of its own.

Bytes are encoded bytes, counts are counts. Limits are never wall time, so that a decision does not depend on a machine.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# What a client may send.
MAX_BODY_BYTES: Final = 2 * MIB
MAX_HEAD_LINE_BYTES: Final = 8 * KIB  # a request's first line, and each of its headers: what proxies take too
MAX_HEADERS: Final = 100
MAX_HEAD_BYTES: Final = 64 * KIB  # all of it: a token and a hundred headers of a proxy fit
MAX_CHUNK_HEAD_SHARE: Final = 8  # bytes around each of a chunked body: five, when each byte is a chunk
MAX_NESTING: Final = 64
MAX_MESSAGE_NESTING: Final = MAX_NESTING + 3  # a value at the limit in its envelope: progress in a lease in a renewal
MAX_STEPS: Final = 10_000
MAX_NEEDS: Final = 10_000
MAX_NAME_CHARS: Final = 63
MAX_DESCRIPTION_BYTES: Final = 4 * KIB
MAX_INPUTS_BYTES: Final = 256 * KIB
MAX_LABELS: Final = 32
MAX_LABEL_CHARS: Final = 256
MAX_IDEMPOTENCY_KEY_CHARS: Final = 255
MAX_BATCH_RUNS: Final = 1_000  # of one request; they fit into one body
MAX_PROBLEMS_OF_BATCH_RUN: Final = 10  # listed of each run of a batch: 10,000 of them are an answer of some megabytes
MAX_CANCEL_REASON_CHARS: Final = 1_000  # a sentence or two; it stays in the run's state until its end
MAX_INTEGER: Final = 2**63 - 1

# What it may cost to check a submission, in units of about 0.1 µs, estimated before the work is done (weights.py): a
# definition of 10,000 steps with an expression of its own each has 30 million. A count, the same on every machine.
MAX_CHECKING_COST: Final = 40_000_000
MAX_CHECKING_COST_IN_LINE: Final = 300_000  # on the gateway's loop: at most 30 ms in which nobody else is answered
MAX_SCHEMA_COST: Final = 2_000_000  # to compile one schema: 50,000 keywords, or 300,000 states of patterns
MAX_SCHEMA_WEIGHT: Final = 100_000  # keywords that apply to one value, with `$ref` followed; thousands are already odd
MAX_PROBLEMS: Final = 100  # listed of what is wrong, others are counted: nobody reads more, and answers have a size
MAX_POINTER_CHARS: Final = 1_000  # of a place that is named; beyond, it is the nearest one around it

# What an expression may do.
MAX_EXPRESSION_CHARS: Final = 4 * KIB
MAX_EXPRESSION_TREE_BYTES: Final = 256 * KIB  # checked, as protobuf: plain ones have 100 KiB, nested optMap doubles
MAX_MACRO_ITERATIONS: Final = 9_999  # of all macros of one evaluation together: the engine's own budget
MAX_RENDERED_BYTES: Final = 1 * MIB
# What expressions may cost, in the unit of `cel_cost`, about a nanosecond and at most two bytes: docs/adr/0007.
MAX_EXPRESSION_COST: Final = 80_000_000  # 50 ms at worst: `map` over 9,999 small rows
MAX_TEMPLATE_COST: Final = 100_000_000  # of all expressions of one `with` or `outputs`: a step cannot be split
COST_PER_TURN: Final = 25_000_000  # one decision evaluates; the rest goes on by a Continue record, others in between

# What step services may announce. Every gateway keeps all of it in memory, compiled (some ten times its bytes).
MAX_STEP_TYPES: Final = 1_000
MAX_ANNOUNCEMENT_BYTES: Final = 256 * KIB  # both schemas and the description; a hundred times a usual one
MAX_ANNOUNCED_BYTES: Final = 8 * MIB  # of all types together

# What a step may hold. A command carries one input, a result one output.
MAX_STEP_INPUT_BYTES: Final = 1 * MIB
MAX_STEP_OUTPUT_BYTES: Final = 1 * MIB
MAX_SECRET_BYTES: Final = (
    16 * KIB
)  # a chain of certificates, the key of a service account; each is looked for in answers
MIN_HIDDEN_CHARS: Final = 4  # of a secret: a shorter one is in every text, and is hidden only where it is all of it
MAX_HTML_NESTING: Final = 512  # of a document that `html` reads: what browsers build, parsing takes its square
MAX_SELECTORS: Final = 256  # of one `html` step: each goes through the whole document
MAX_SELECTOR_CHARS: Final = 1_000  # a hundred times what people write
MAX_RECIPIENTS: Final = 50  # of one e-mail: what servers take at once; more is a mailing list
MAX_ERROR_TYPE_CHARS: Final = 256
MAX_ERROR_MESSAGE_CHARS: Final = 4 * KIB
MAX_ERROR_DETAILS_BYTES: Final = 16 * KIB
MAX_PROGRESS_BYTES: Final = 4 * KIB  # one record renews up to 200 leases: their progress must fit into it

# What a record may weigh: the largest body fits although escaping it as JSON text may double it, and so does a dead
# letter of such a record (base64 makes 4/3 of it).
MAX_MESSAGE_BYTES: Final = 4 * MIB + 256 * KIB
MAX_RECORD_BYTES: Final = 6 * MIB
# What a run's first event repeats of its submission; with the ids and types of all steps it fits into a message.
MAX_REPEATED_BYTES: Final = 2 * MIB

# What a run may hold: inputs, labels, outputs, errors and progress of its steps. 10,000 steps of 3 KiB, or 32 of the
# largest outputs. A run is one document for whoever asks for it, put together in memory.
MAX_RUN_BYTES: Final = 32 * MIB
MAX_FULL_RUN_ERROR_CHARS: Final = 200  # of the message of a step that fails when its run is full: 10,000 of them fit

# What one record may lead to. The rest goes on by a Continue record; a step more may be over it.
MAX_TURN_BYTES: Final = 4 * MIB
# Commands of one run that are out and not answered: all its workers have half of what they may hold themselves.
MAX_WINDOW_BYTES: Final = 16 * MIB

# What a process has on its way to Kafka, and what it has read from there and not taken up, all partitions together.
# As objects, copies and batches it takes a few times as much.
MAX_UNACKNOWLEDGED_BYTES: Final = 32 * MIB
MAX_FETCHED_BYTES: Final = 32 * MIB
MAX_FETCH_BYTES: Final = 8 * MIB  # of one answer of a broker: some thousand records, or one of the largest

# What run documents take that a gateway reads, puts together and sends at once. One is held three times while it is put
# together, so the largest come one after the other; small ones are not counted.
MAX_READING_BYTES: Final = 128 * MIB
MAX_UNCOUNTED_READING_BYTES: Final = 64 * KIB

# What a gateway reads of events for its streams by one statement, small events together; and what large ones take that
# are on their way to clients, all streams together: some thirty of the largest, of one client a quarter of that.
MAX_EVENTS_READ_BYTES: Final = MIB
MAX_UNCOUNTED_EVENT_BYTES: Final = 64 * KIB
MAX_STREAMED_BYTES: Final = 128 * MIB
MAX_STREAMED_BYTES_OF_CLIENT: Final = 32 * MIB

# Answers of the record that a gateway gives again for a second: some hundred pages of runs.
MAX_RECENT_ANSWERS_BYTES: Final = 8 * MIB

# Run events that one loop of history has decoded and the other will ask for: of half a second of a busy engine.
MAX_SHARED_EVENTS: Final = 4096
MAX_SHARED_EVENT_BYTES: Final = 4 * MIB

# What one checkpoint holds, more or less: encoded in milliseconds, written far within a transaction's time.
MAX_CHECKPOINT_BYTES: Final = 8 * MIB
MAX_UNCHECKPOINTED_BYTES: Final = 32 * MIB

# How long anything may wait, seconds.
MAX_WAIT_S: Final = 30 * 24 * 3600
DEFAULT_RUN_TIMEOUT_S: Final = 900.0
DEFAULT_STEP_TIMEOUT_S: Final = 300.0

# How much of a run is in flight.
DEFAULT_WINDOW: Final = 256  # steps of one run dispatched and not finished; results release the next
STEPS_PER_TURN: Final = 256  # steps one decision may settle; a larger expansion goes on by a Continue record

MAX_DELETED_EVENTS: Final = 5_000  # of runs deleted in one transaction: a tenth of a second; one larger run is alone
MAX_DELETED_RUNS: Final = 500  # likewise, of runs with few events

# What the record in SQL takes: names are parts of keys and indexes, of which PostgreSQL allows 2.7 KB each.
MAX_RECORDED_NAME_BYTES: Final = 4 * 255  # a tenant's is the longest, MAX_CLAIM_CHARS
MAX_SEARCHED_VALUE_BYTES: Final = 512  # of an input's or label's name and value; of longer ones the beginning
MAX_SEARCHED_INPUTS: Final = 100  # of one run, beside its labels
MAX_SEARCHED_ERROR_CHARS: Final = 500  # of the message of a run's error
MAX_SEARCHED_VALUES: Final = 10  # labels and inputs of one search: each is looked up for every run that fits the first
MAX_SEARCHED_TEXT_CHARS: Final = 200
MAX_PAGE_RUNS: Final = 200  # of one page of a search
MAX_RECORDED_NUMBER: Final = 2**31 - 1  # of an event's place in its run, and of an attempt

MAX_API_KEYS: Final = 100_000
"""API keys that a gateway knows at once: some 60 MB of memory."""

# What an OIDC issuer may send, and its clients.
MAX_TOKEN_CHARS: Final = MAX_HEAD_LINE_BYTES  # a header carries it
MAX_CLAIM_CHARS: Final = 255  # of a tenant or a subject: what OIDC allows a subject
MAX_JWKS_BYTES: Final = 256 * KIB  # of an issuer's keys, or of its description; usual are 2 to 20 KiB
MAX_JWKS_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192  # a signature is checked on the gateway's loop: 0.2 ms
