"""A small Android device on loopback: it speaks adb's protocol to real adb.

Messages are CNXN, AUTH, OPEN, OKAY, WRTE and CLSE; services are `shell,v2` and
`sync:`. Commands run in this machine's sh, with the device's own programs first
in PATH, so what a runner sends is executed and not looked up.
"""

import contextlib
import os
import pathlib
import queue
import socket
import struct
import subprocess
import threading

_VERSION = 0x01000000
_MAX_DATA = 256 * 1024
_STDOUT, _STDERR, _EXIT = 1, 2, 3
_BANNER = b'device::ro.product.model=%s;features=shell_v2,cmd\x00'


class Device:
  """A device; a context manager.

  Attributes:
    address: what `adb connect` takes, and the serial.
    commands: every shell command it was given.
    vanish_after: seconds from the start of the next command to its end.
  """

  def __init__(
    self,
    programs: pathlib.Path,
    *,
    model: str = 'Loopback',
    trusts: bool = True,
    free_bytes: int | None = None,
    freeze_on: str = '',
    num_commands: int | None = None,
  ):
    """A device.

    Args:
      programs: folder whose programs shadow those of this machine.
      model: name of the product.
      trusts: whether it lets this computer in.
      free_bytes: space for files; None for no limit.
      freeze_on: says nothing more when a command has this text.
      num_commands: vanishes when it is given that many; None for never.
    """
    self.programs = programs
    self.model = model
    self.trusts = trusts
    self.free_bytes = free_bytes
    self.vanish_after: float | None = None
    self.freeze_on = freeze_on
    self.num_commands = num_commands
    self.commands: list[str] = []
    self._connections: list[_Connection] = []
    self._listener = socket.create_server(('127.0.0.1', 0))
    self.address = f'127.0.0.1:{self._listener.getsockname()[1]}'

  def __enter__(self):
    threading.Thread(target=self._accept, daemon=True).start()
    return self

  def __exit__(self, *_):
    self.vanish()

  def vanish(self):
    """Unplugs the cable."""
    # A blocked accept goes on holding the port until it is shut down.
    with contextlib.suppress(OSError):
      self._listener.shutdown(socket.SHUT_RDWR)
    self._listener.close()
    for connection in self._connections:
      connection.close()

  def _accept(self):
    with contextlib.suppress(OSError):
      while True:
        connection = _Connection(self, self._listener.accept()[0])
        self._connections.append(connection)
        threading.Thread(target=connection.serve, daemon=True).start()


class _Connection:
  """One adb server that is connected to the device."""

  def __init__(self, device: Device, sock: socket.socket):
    self.device = device
    self._sock = sock
    self._sending = threading.Lock()
    self._streams: dict[int, _Stream] = {}

  def close(self):
    with contextlib.suppress(OSError):
      self._sock.shutdown(socket.SHUT_RDWR)
    self._sock.close()
    for stream in list(self._streams.values()):
      stream.end()

  def serve(self):
    with contextlib.suppress(OSError, EOFError):
      while True:
        head = self._read(24)
        command, arg0, arg1, length = struct.unpack('<4sIII', head[:16])
        self._handle(command, arg0, arg1, self._read(length))
    self.close()

  def send(self, command: bytes, arg0: int, arg1: int, data: bytes = b''):
    magic = int.from_bytes(command, 'little') ^ 0xFFFFFFFF
    head = struct.pack(
      '<4sIIIII', command, arg0, arg1, len(data), sum(data), magic
    )
    with self._sending, contextlib.suppress(OSError):
      self._sock.sendall(head + data)

  def _read(self, count: int) -> bytes:
    data = b''
    while len(data) < count:
      part = self._sock.recv(count - len(data))
      if not part:
        raise EOFError
      data += part
    return data

  def _handle(self, command: bytes, arg0: int, arg1: int, data: bytes):
    if command == b'CNXN' and self.device.trusts:
      banner = _BANNER % self.device.model.encode()
      self.send(b'CNXN', _VERSION, _MAX_DATA, banner)
    elif command == b'CNXN' or (command == b'AUTH' and arg0 == 2):
      self.send(b'AUTH', 1, 0, bytes(20))  # no signature is good enough
    elif command == b'OPEN':
      stream = _Stream(self, arg0)
      self._streams[stream.id] = stream
      threading.Thread(target=stream.serve, args=(data,), daemon=True).start()
    elif command == b'WRTE' and arg1 in self._streams:
      self._streams[arg1].received(data)
      self.send(b'OKAY', arg1, arg0)
    elif command == b'OKAY' and arg1 in self._streams:
      self._streams[arg1].ready.release()
    elif command == b'CLSE' and arg1 in self._streams:
      self._streams.pop(arg1).end()


class _Stream:
  """One service that was opened."""

  _next_id = 1

  def __init__(self, connection: _Connection, peer: int):
    self.connection = connection
    self.peer = peer
    self.id = _Stream._next_id
    _Stream._next_id += 1
    self.ready = threading.Semaphore(0)
    self._data: queue.Queue[bytes | None] = queue.Queue()
    self._buffer = b''

  def received(self, data: bytes):
    self._data.put(data)

  def end(self):
    """The other side is gone; what it had started goes on, to be on guard."""
    self._data.put(None)
    self.ready.release()

  def serve(self, service: bytes):
    name = service.rstrip(b'\x00').decode()
    kind, _, argument = name.partition(':')
    if kind.split(',')[0] == 'shell':
      self._reply(b'OKAY')
      self._shell(argument)
    elif kind == 'sync':
      self._reply(b'OKAY')
      with contextlib.suppress(EOFError):
        self._sync()
    self._reply(b'CLSE')

  def _reply(self, command: bytes):
    self.connection.send(command, self.id, self.peer)

  def _write(self, data: bytes):
    self.connection.send(b'WRTE', self.id, self.peer, data)
    self.ready.acquire()

  def _packet(self, kind: int, data: bytes):
    self._write(struct.pack('<BI', kind, len(data)) + data)

  def _shell(self, command: str):
    device = self.connection.device
    device.commands.append(command)
    if len(device.commands) == device.num_commands:
      device.vanish()
    if device.vanish_after is not None:
      threading.Timer(device.vanish_after, device.vanish).start()
    process = subprocess.Popen(
      ['sh', '-c', command],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=os.environ | {'PATH': f'{device.programs}:{os.environ["PATH"]}'},
    )
    if device.freeze_on and device.freeze_on in command:
      process.communicate()
      threading.Event().wait()
    errors = threading.Thread(
      target=self._forward, args=(process.stderr, _STDERR)
    )
    errors.start()
    self._forward(process.stdout, _STDOUT)
    errors.join()
    code = process.wait()
    self._packet(_EXIT, bytes([code if code >= 0 else 128 - code]))

  def _forward(self, pipe, kind: int):
    with pipe:
      while data := os.read(pipe.fileno(), 65536):
        self._packet(kind, data)

  def _sync(self):
    """Files: STAT and SEND are all that a push needs."""
    while True:
      request, length = struct.unpack('<4sI', self._take(8))
      if request == b'QUIT':
        return
      path = self._take(length).decode()
      if request == b'STAT':
        self._write(b'STAT' + struct.pack('<III', *_stat(path)))
      elif request == b'SEND':
        self._receive(pathlib.Path(path.rpartition(',')[0]))

  def _receive(self, path: pathlib.Path):
    device = self.connection.device
    content = b''
    while True:
      request, length = struct.unpack('<4sI', self._take(8))
      if request == b'DONE':
        break
      content += self._take(length)
    error = ''
    if device.free_bytes is not None and len(content) > device.free_bytes:
      error = 'write failed: No space left on device'
    else:
      try:
        path.write_bytes(content)
      except OSError as e:
        error = f"couldn't create file: {e.strerror}"
      if device.free_bytes is not None:
        device.free_bytes -= len(content)
    reply = b'FAIL' if error else b'OKAY'
    self._write(reply + struct.pack('<I', len(error)) + error.encode())

  def _take(self, count: int) -> bytes:
    while len(self._buffer) < count:
      data = self._data.get()
      if data is None:
        raise EOFError
      self._buffer += data
    taken, self._buffer = self._buffer[:count], self._buffer[count:]
    return taken


def _stat(path: str) -> tuple[int, int, int]:
  try:
    found = os.stat(path)
  except OSError:
    return (0, 0, 0)
  return (found.st_mode, found.st_size, int(found.st_mtime))
