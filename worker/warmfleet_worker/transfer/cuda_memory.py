"""Device memory that another process of the host can map: the few calls of CUDA's driver for it.

Through the driver's own library, which is there wherever a GPU is used, whatever torch was built with.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from warmfleet_proto.errors import WorkerLost

from warmfleet_worker.transfer.tcp_stream import TcpStream

_HANDLE_BYTES = 64
_ENABLE_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_MAX_UNUSED = 64  # mappings that are kept for the next pull


class _Handle(ctypes.Structure):
    """CUipcMemHandle."""

    _fields_ = (("data", ctypes.c_ubyte * _HANDLE_BYTES),)


class CudaMemory:
    """See ``device_lanes.DeviceMemory``. Of one device, by the number that CUDA gives it in this process."""

    def __init__(self, device: int) -> None:
        """Raises OSError."""
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._lock = Lock()
        self._opened: dict[bytes, int] = {}  # handles to addresses, the longest unused first
        self._users: dict[int, int] = {}  # of each address that was opened
        self._context = ctypes.c_void_p()
        number = ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(number), device)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), number)  # torch's own

    def allocate(self, size: int) -> int:
        address = ctypes.c_uint64()
        with self._current():
            self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        with self._current():
            self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def show(self, stream: TcpStream, address: int) -> None:
        handle = _Handle()
        with self._current():
            self._call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
        stream.send([bytes(handle)])

    def open(self, stream: TcpStream, size: int) -> int:
        """Mapped once for all pulls from the same lane: mapping takes longer than many a pull."""
        handle = stream.receive(_HANDLE_BYTES)
        with self._lock, self._current():
            address = self._opened.pop(handle, None)
            if address is None:
                address = self._map(handle)
            self._opened[handle] = address
            self._users.setdefault(address, 0)
            try:
                self._check(address, size)
            except WorkerLost:
                self._unmap(_MAX_UNUSED)
                raise
            self._users[address] += 1
        return address

    def leave(self, address: int) -> None:
        with self._lock:
            self._users[address] -= 1
            self._unmap(_MAX_UNUSED)

    def close(self) -> None:
        with self._lock:
            self._unmap(0)

    def _unmap(self, most: int) -> None:
        """All but so many that nobody uses. Under the lock."""
        unused = [handle for handle, at in self._opened.items() if not self._users[at]]
        for handle in unused[: max(len(unused) - most, 0)]:
            address = self._opened.pop(handle)
            del self._users[address]
            with self._current():
                self._call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def _map(self, handle: bytes) -> int:
        address = ctypes.c_uint64()
        opened = _Handle.from_buffer_copy(handle)
        try:
            self._call("cuIpcOpenMemHandle_v2", ctypes.byref(address), opened, _ENABLE_PEER_ACCESS)
        except (OSError, MemoryError) as error:
            raise WorkerLost(f"the source's device memory cannot be mapped: {error}") from None
        return address.value

    def _check(self, address: int, size: int) -> None:
        """A kernel that read more than is mapped would end every other use of the device too. A driver that
        tells no size of what another process has made is not the source's fault."""
        base, whole = ctypes.c_uint64(), ctypes.c_size_t()
        try:
            self._call(
                "cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(whole), ctypes.c_uint64(address)
            )
        except (OSError, MemoryError):
            return
        if (shown := base.value + whole.value - address) < size:
            raise WorkerLost(f"the source shows {shown} bytes of device memory, where its lane has {size}")

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Makes the context current in the calling thread while the block lasts."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: object) -> None:
        """Raises MemoryError, OSError."""
        code = getattr(self._driver, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            why = f"{name}: {(text.value or b'unknown').decode()} ({code})"
            raise MemoryError(why) if code == _OUT_OF_MEMORY else OSError(why)
