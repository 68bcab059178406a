"""Every bound that two programs must agree on. Hitting one refuses or drops by rule, and counts."""

TOKEN_BYTES = 4
HASH_BYTES = 16
KEY_BYTES = 8
DIGEST_BYTES = 16

# A request.
BODY_BYTES = 16 << 20  # HTTP body; a 300k-token prompt is over 1 MB of text
BODY_READ_S = 10.0
PROMPT_BYTES = 8 << 20  # packed token ids: two million tokens
FRAME_BYTES = 256 << 10  # of a prompt on a Serve stream
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 1024
MAX_SALT_BYTES = 64
MAX_ID_CHARS = 128  # request, gateway, worker and tenant names

# gRPC. A message is checked against these after decompression.
MESSAGE_BYTES = 4 << 20
ROUTE_MESSAGE_BYTES = PROMPT_BYTES + (64 << 10)

# A Serve stream.
STREAM_BACKLOG_BYTES = 256 << 10  # a client further behind is cancelled
REATTACH_S = 5.0

# Presence events.
HEARTBEAT_S = 0.25  # a worker's silence on WatchKv is never longer than this
STUCK_AFTER_S = 1.0  # ... and is taken for a stuck worker after this
EVENT_RING_BATCHES = 4096
HASHES_PER_MESSAGE = 65_536  # 1 MiB
WATCH_BACKLOG_MESSAGES = 1024  # a router further behind gets a snapshot

# Bookings.
BOOKING_TTL_S = 10.0
BOOKING_HEARTBEAT_S = 2.0
MAX_BOOKINGS = 200_000

# Moving blocks between workers.
GRANT_TTL_S = 10.0
LEASE_TTL_S = 10.0
GRANT_BLOCKS = 131_072  # two million tokens: 1 MiB of keys
GRANT_BYTES = GRANT_BLOCKS * KEY_BYTES + 1024  # of its claims
SECRET_BYTES = 16  # open the data connections of a lease
