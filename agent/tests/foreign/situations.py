"""A foreign program: every situation that a TCP connection can be in, made by real processes, each of which says what
its own calls returned.

Argument: the name of a situation; without one, their names and titles are printed, a line each. It runs in a network
namespace that tests/it/truth.rs prepares. Prints one JSON object: what the processes did, by their own account, and what
the namespace's own counters and `ss` say. Where something is open it prints `pause` first and waits for a line.
"""

import array
import ctypes
import errno
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys

HOLE = ("192.0.2.1", 80)  # what goes there vanishes
UNREACHABLE = ("198.51.100.1", 80)  # a router says that there is no way
PROHIBITED = ("203.0.113.1", 80)
BLACKHOLED = ("203.0.113.65", 80)
NO_ROUTE = ("203.0.113.129", 80)
CLOSED = ("127.0.0.1", 9)

ACCOUNT = {"calls": [], "attempts": [], "ends": [], "late": [], "ss": "", "pids": {"server": os.getpid()}}
ME = "server"
SITUATIONS = {}


def situation(title):
    def register(work):
        SITUATIONS[work.__name__] = (title, work)
        return work

    return register


def call(text):
    ACCOUNT["calls"].append(f"{ME}: {text}")


def name(number):
    return errno.errorcode.get(number, str(number)) if number else "0"


def attempt(sock, result):
    """An attempt is over, or its process has given up: what it learned, and from which port it called."""
    try:
        port = sock.getsockname()[1]
    except OSError:
        port = 0
    ACCOUNT["attempts"].append({"who": ME, "result": result, "port": port})


def ended(port, by):
    """A passive end, by its peer's port, and whose call ended it; None: the peer or the kernel did."""
    ACCOUNT["ends"].append({"port": port, "by": by})


def tcp(family=socket.AF_INET):
    return socket.socket(family, socket.SOCK_STREAM)


def listen(address="127.0.0.1", family=socket.AF_INET, backlog=64, port=0, reuse=False, fastopen=False):
    sock = tcp(family)
    if reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if fastopen:
        sock.setsockopt(socket.IPPROTO_TCP, 23, 8)  # TCP_FASTOPEN
    sock.bind((address, port))
    sock.listen(backlog)
    return sock


def connect(sock, to):
    """connect() that is the whole attempt."""
    result = name(sock.connect_ex(to))
    call(f"connect = {result}")
    attempt(sock, result)
    return sock


def dial(to, family=socket.AF_INET):
    return connect(tcp(family), to)


def fork(label, work):
    """Runs work(talk) in a process of its own: `talk` is a socket to its parent."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        global ME
        ME = label
        ours.close()
        for part in ("calls", "attempts", "ends", "late"):
            ACCOUNT[part] = []
        work(theirs)
        theirs.sendall(b"\n" + json.dumps(ACCOUNT).encode() + b"\n")
        theirs.close()
        os._exit(0)
    theirs.close()
    ACCOUNT["pids"][label] = pid
    return ours, pid


def join(child):
    """Waits until a process has ended, and takes its account in."""
    talk, pid = child
    text = b""
    while more := talk.recv(65536):
        text += more
    os.waitpid(pid, 0)
    take_in([line for line in text.split(b"\n") if line.startswith(b"{")][-1])


def take_in(text):
    account = json.loads(text)
    for part in ("calls", "attempts", "ends", "late"):
        ACCOUNT[part] += account[part]
    ACCOUNT["pids"].update(account["pids"])


def pause():
    """Everybody looks now."""
    text = subprocess.run(["ss", "-tanH"], capture_output=True, text=True, check=True).stdout
    states = sorted(line.split()[0] for line in text.splitlines())
    states = [state for state in states if state != "TIME-WAIT"]  # of connections that are over
    ACCOUNT["ss"] = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    print("pause", flush=True)
    sys.stdin.readline()


def counters():
    found = {}
    for path in ("/proc/net/snmp", "/proc/net/netstat"):
        with open(path) as file:
            lines = file.read().splitlines()
        for names, values in zip(lines[::2], lines[1::2]):
            found.update(zip(names.split()[1:], values.split()[1:]))
    wanted = (
        "ActiveOpens",
        "PassiveOpens",
        "AttemptFails",
        "EstabResets",
        "OutRsts",
        "TCPSynRetrans",
        "ListenOverflows",
    )
    return {wanted_name: int(found[wanted_name]) for wanted_name in wanted}


def listen_to_resets():
    """Everything that this namespace sends, whoever does: packet(7), ETH_P_ALL."""
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    sniffer.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    sniffer.setblocking(False)
    return sniffer


def resets(sniffer):
    """The ports of the resets, as (from, to)."""
    found = []
    while True:
        try:
            packet, (_, _, kind, _, _) = sniffer.recvfrom(256)
        except BlockingIOError:
            return found
        # On loopback each packet is seen twice.
        if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP:
            header = packet[(packet[0] & 15) * 4 :]
        elif packet[0] >> 4 == 6 and packet[6] == socket.IPPROTO_TCP:
            header = packet[40:]
        else:
            continue
        if kind == 4 and header[13] & RST:  # PACKET_OUTGOING
            found.append(struct.unpack("!HH", header[:4]))


def accept(listener):
    sock, peer = listener.accept()
    call("accept = 0")
    return sock, peer[1]


def until_end(sock):
    while sock.recv(4096):
        pass


def reset_on_close(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def one_connection(listener, to, client, server, family=socket.AF_INET):
    """A client in a process of its own; both sides get their end of the connection."""

    def work(talk):
        client(dial(to, family), talk)

    child = fork("client", work)
    sock, port = accept(listener)
    server(sock, port)
    join(child)


def client_closes(sock, _):
    sock.sendall(b"x")
    sock.close()


def server_follows(sock, port):
    until_end(sock)
    sock.close()
    ended(port, ME)


@situation("the client closes first")
def finished_by_client():
    listener = listen()
    one_connection(listener, listener.getsockname(), client_closes, server_follows)


@situation("the same over IPv6")
def finished_over_ipv6():
    listener = listen("::1", socket.AF_INET6)
    one_connection(listener, listener.getsockname(), client_closes, server_follows, socket.AF_INET6)


@situation("a client of IPv4 at a dual-stack listener")
def dual_stack():
    listener = listen("::", socket.AF_INET6)
    one_connection(listener, ("127.0.0.1", listener.getsockname()[1]), client_closes, server_follows)


@situation("a client calls ::ffff:127.0.0.1 with a socket of IPv6")
def mapped_client():
    listener = listen()
    to = ("::ffff:127.0.0.1", listener.getsockname()[1])
    one_connection(listener, to, client_closes, server_follows, socket.AF_INET6)


def server_closes(sock, port):
    sock.close()
    ended(port, ME)


@situation("the server closes first")
def finished_by_server():
    listener = listen()
    one_connection(listener, listener.getsockname(), lambda sock, _: (until_end(sock), sock.close()), server_closes)


@situation("half closed, then closed from the other side")
def half_closed():
    def client(sock, _):
        sock.shutdown(socket.SHUT_WR)
        until_end(sock)
        sock.close()

    listener = listen()
    one_connection(listener, listener.getsockname(), client, server_follows)


@situation("the client resets")
def reset_by_client():
    def client(sock, _):
        reset_on_close(sock)
        sock.close()

    def server(sock, port):
        try:
            until_end(sock)
        except OSError as error:
            call(f"recv = {name(error.errno)}")
        sock.close()
        ended(port, None)

    listener = listen()
    one_connection(listener, listener.getsockname(), client, server)


@situation("the server closes with data that it did not read")
def closed_unread():
    def client(sock, talk):
        sock.sendall(b"nobody reads this")
        talk.sendall(b".")
        try:
            until_end(sock)
        except OSError as error:
            call(f"recv = {name(error.errno)}")
        sock.close()

    listener = listen()
    child = fork("client", lambda talk: client(dial(listener.getsockname()), talk))
    sock, port = accept(listener)
    child[0].recv(1)
    server_closes(sock, port)
    join(child)


def half_closed_with_answer(close):
    """The client shuts its side, and the server has seen that; an answer has come when the client ends it."""

    def client(talk):
        sock = dial(listener.getsockname())
        sock.shutdown(socket.SHUT_WR)
        talk.sendall(b".")
        select.select([sock], [], [])
        close(sock)

    listener = listen()
    child = fork("client", client)
    sock, port = accept(listener)
    until_end(sock)
    child[0].recv(1)
    sock.sendall(b"nobody reads this")
    join(child)
    send_and_learn(sock)
    sock.close()
    ended(port, None)


def send_and_learn(sock):
    try:
        sock.send(b"x", socket.MSG_NOSIGNAL)
        call("send = 1")
    except OSError as error:
        call(f"send = {name(error.errno)}")


@situation("the client has closed its side, then closes with data that it did not read")
def half_closed_unread():
    half_closed_with_answer(lambda sock: sock.close())


@situation("the client has closed its side, reads the answer, then resets")
def half_closed_reset():
    def close(sock):
        sock.recv(64)
        reset_on_close(sock)
        sock.close()

    half_closed_with_answer(close)


@situation("the client has closed its side, reads the answer, then closes before the server does")
def half_closed_answered():
    def client(talk):
        sock = dial(listener.getsockname())
        sock.shutdown(socket.SHUT_WR)
        sock.recv(64)
        sock.close()
        talk.sendall(b".")

    listener = listen()
    child = fork("client", client)
    sock, port = accept(listener)
    until_end(sock)
    sock.sendall(b"an answer")
    child[0].recv(1)
    join(child)
    sock.close()
    ended(port, ME)


@situation("data comes after shutdown() of both sides")
def shut_then_data():
    def client(sock, talk):
        until_end(sock)
        talk.recv(1)
        send_and_learn(sock)
        send_and_learn(sock)
        talk.sendall(b".")
        sock.close()

    listener = listen()
    child = fork("client", lambda talk: client(dial(listener.getsockname()), talk))
    sock, port = accept(listener)
    sock.shutdown(socket.SHUT_RDWR)
    # The call is over: the kernel answers the data at once.
    child[0].sendall(b".")
    child[0].recv(1)
    try:
        sock.recv(1)
    except OSError as error:
        call(f"recv = {name(error.errno)}")
    sock.close()
    ended(port, ME)
    join(child)


def until_acknowledged(port):
    """Until no socket of this local port waits for the acknowledgement of its FIN any more: FIN_WAIT1, in /proc/net/tcp."""
    while True:
        with open("/proc/net/tcp") as file:
            sockets = [line.split() for line in file.read().splitlines()[1:]]
        if not any(words[1].endswith(f":{port:04X}") and words[3] == "04" for words in sockets):
            return
        select.select([], [], [], 0.005)


@situation("data comes after close(), when the FIN was acknowledged")
def closed_then_data():
    """The socket is gone: what is left of it, a time-wait entry, sends the reset."""

    def client(sock, talk):
        until_end(sock)
        talk.recv(1)
        send_and_learn(sock)
        send_and_learn(sock)
        sock.close()

    listener = listen()
    child = fork("client", lambda talk: client(dial(listener.getsockname()), talk))
    sock, port = accept(listener)
    ACCOUNT["late"].append(listener.getsockname()[1])
    server_closes(sock, port)
    until_acknowledged(listener.getsockname()[1])
    child[0].sendall(b".")
    join(child)


@situation("both processes are killed while connected")
def killed_while_connected():
    to = listen()

    def client(talk):
        sock = dial(to.getsockname())
        to.close()
        talk.sendall(json.dumps(ACCOUNT).encode() + b"\n")
        sock.recv(1)

    def worker(talk):
        sock, port = accept(to)
        ended(port, ME)
        talk.sendall(json.dumps(ACCOUNT).encode() + b"\n")
        sock.recv(1)

    children = [fork("client", client), fork("worker", worker)]
    to.close()
    heard = [child[0].recv(65536) for child in children]
    for (_, pid), text in zip(children, heard):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        take_in(text)


@situation("it stays open")
def stays_open():
    def client(sock, talk):
        talk.sendall(b".")
        talk.recv(1)
        sock.close()

    listener = listen()
    child = fork("client", lambda talk: client(dial(listener.getsockname()), talk))
    sock, port = accept(listener)
    child[0].recv(1)
    pause()
    child[0].sendall(b".")
    server_follows(sock, port)
    join(child)


@situation("it is older than the agent")
def older_than_the_agent():
    stays_open()


@situation("nobody listens")
def refused():
    join(fork("client", lambda _: dial(CLOSED).close()))


@situation("nobody listens, on IPv6")
def refused_over_ipv6():
    join(fork("client", lambda _: dial(("::1", 9), socket.AF_INET6).close()))


@situation("nobody answers, and the kernel gives up")
def timed_out():
    join(fork("client", lambda _: dial(HOLE).close()))


def begin(to, family=socket.AF_INET):
    sock = tcp(family)
    sock.setblocking(False)
    call(f"connect = {name(sock.connect_ex(to))}")
    return sock


def give_up(to):
    """connect() with the process' own limit of 1.3 s."""
    sock = tcp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 300_000))
    call(f"connect = {name(sock.connect_ex(to))}")
    attempt(sock, "closed")
    sock.close()


@situation("nobody answers, and the process gives up after 1.3 s")
def given_up():
    join(fork("client", lambda _: give_up(HOLE)))


def firewall(verdict, client):
    """Runs the client while a firewall says this of what is for the port where nobody listens."""
    rules = f"""table inet situation {{
        chain input {{ type filter hook input priority 0; tcp dport {CLOSED[1]} {verdict}; }}
    }}"""
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        join(fork("client", client))
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "situation"], check=True)


@situation("a firewall drops the SYN, and the process gives up after 1.3 s")
def dropped_by_firewall():
    firewall("drop", lambda _: give_up(CLOSED))


@situation("a firewall rejects the SYN by an ICMP message")
def rejected_by_firewall():
    firewall("reject with icmp type port-unreachable", lambda _: dial(CLOSED).close())


@situation("a firewall prohibits the SYN by an ICMP message")
def prohibited_by_firewall():
    firewall("reject with icmp type admin-prohibited", lambda _: dial(CLOSED).close())


@situation("the process closes before there can be an answer")
def aborted():
    def client(_):
        sock = begin(HOLE)
        attempt(sock, "closed")
        sock.close()

    join(fork("client", client))


@situation("an attempt waits for its answer, then its process is killed")
def waits():
    def client(talk):
        sock = begin(HOLE)
        attempt(sock, "closed")
        talk.sendall(json.dumps(ACCOUNT).encode() + b"\n")
        talk.recv(1)

    talk, pid = fork("client", client)
    text = talk.recv(65536)
    # Until the first SYN was sent again, so that it is the same every time.
    before = counters()["TCPSynRetrans"]
    while counters()["TCPSynRetrans"] == before:
        select.select([], [], [], 0.05)
    pause()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    take_in(text)


@situation("a router has no route")
def unreachable():
    join(fork("client", lambda _: dial(UNREACHABLE).close()))


@situation("the node has no route")
def no_route():
    join(fork("client", lambda _: dial(NO_ROUTE).close()))


@situation("the node's routes prohibit it")
def prohibited():
    join(fork("client", lambda _: dial(PROHIBITED).close()))


@situation("the node's routes lead into a black hole")
def blackholed():
    join(fork("client", lambda _: dial(BLACKHOLED).close()))


@situation("a policy of the process forbids connect()")
def forbidden():
    """By seccomp: connect() gives EPERM (linux/filter.h, linux/seccomp.h)."""

    def client(_):
        libc = ctypes.CDLL(None, use_errno=True)
        number = 203 if os.uname().machine == "aarch64" else 42
        program = struct.pack("HBBI", 0x20, 0, 0, 0)  # load the number
        program += struct.pack("HBBI", 0x15, 0, 1, number)  # is it connect?
        program += struct.pack("HBBI", 0x06, 0, 0, 0x0005_0000 | errno.EPERM)
        program += struct.pack("HBBI", 0x06, 0, 0, 0x7FFF_0000)
        instructions = ctypes.create_string_buffer(program, len(program))
        filter_program = struct.pack("HxxxxxxP", 4, ctypes.addressof(instructions))
        assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        assert libc.prctl(22, 2, filter_program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        dial(CLOSED).close()

    join(fork("client", client))


@situation("no port is free")
def no_port():
    listener = listen()
    to = listener.getsockname()
    with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
        file.write("40000 40000")

    def work(_):
        first = dial(to)
        second = dial(to)
        second.close()
        first.sendall(b"x")
        first.close()

    child = fork("client", work)
    sock, port = accept(listener)
    server_follows(sock, port)
    join(child)


def segment(source, to, sequence, acknowledgement, flags, payload=b""):
    """Sends one TCP segment as if it came from `source`. The payload has an even length."""
    header = struct.pack("!HHIIBBHHH", source[1], to[1], sequence, acknowledgement, 5 << 4, flags, 65535, 0, 0)
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(to[0])
    words = array.array("H", addresses + struct.pack("!HH", socket.IPPROTO_TCP, len(header + payload)) + header + payload)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    checksum = struct.pack("H", ~total & 0xFFFF)
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(header + payload), 0, 0, 64, socket.IPPROTO_TCP, 0) + addresses
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    raw.sendto(packet + header[:16] + checksum + header[18:] + payload, (to[0], 0))


SYN, RST, ACK = 0x02, 0x04, 0x10


def next_sequence(sock):
    """What it sends next, as those read it who move connections between machines (TCP_REPAIR, its queue, TCP_QUEUE_SEQ)."""
    sock.setsockopt(socket.IPPROTO_TCP, 19, 1)
    sock.setsockopt(socket.IPPROTO_TCP, 20, 2)
    found = sock.getsockopt(socket.IPPROTO_TCP, 21) & 0xFFFF_FFFF
    sock.setsockopt(socket.IPPROTO_TCP, 19, -1)
    return found


def fetched(sock):
    """What getsockopt() says of an attempt that ended."""
    result = name(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    call(f"SO_ERROR = {result}")
    attempt(sock, result)


@situation("a reset in the middle of the handshake")
def reset_in_handshake():
    def client(_):
        sock = begin(HOLE)
        me = sock.getsockname()
        segment(HOLE, me, 1_000, 0, SYN)
        segment(HOLE, me, 1_001, 0, RST)
        result = name(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        call(f"SO_ERROR = {result}")
        ACCOUNT["attempts"].append({"who": ME, "result": result, "port": me[1]})
        sock.close()

    join(fork("client", client))


@situation("both sides call each other at once")
def simultaneous_open():
    """The other side is a few segments; its SYN crosses ours."""

    def client(_):
        sock = begin(HOLE)
        me = sock.getsockname()
        sequence = next_sequence(sock)
        segment(HOLE, me, 1_000, 0, SYN)
        segment(HOLE, me, 1_001, sequence, ACK)
        fetched(sock)
        reset_on_close(sock)
        sock.close()

    join(fork("client", client))


@situation("a socket calls itself")
def self_connect():
    def client(_):
        sock = tcp()
        sock.bind(("127.0.0.1", 0))
        connect(sock, sock.getsockname())
        sock.sendall(b"echo")
        assert sock.recv(4) == b"echo"
        sock.close()

    join(fork("client", client))


@situation("a socket that does not wait connects")
def nonblocking():
    def client(talk):
        sock = begin(to)
        fetched(sock)
        client_closes(sock, talk)

    listener = listen()
    to = listener.getsockname()
    child = fork("client", client)
    sock, port = accept(listener)
    server_follows(sock, port)
    join(child)


def bound(sock):
    """A port that is known before connect(): it is forgotten when the attempt fails."""
    sock.bind(("127.0.0.1", 0))
    return sock, sock.getsockname()[1]


def told(result, port):
    ACCOUNT["attempts"].append({"who": ME, "result": result, "port": port})


@situation("a socket that does not wait is refused, and asks SO_ERROR")
def nonblocking_refused():
    def client(_):
        sock, port = bound(tcp())
        sock.setblocking(False)
        call(f"connect = {name(sock.connect_ex(CLOSED))}")
        result = name(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        call(f"SO_ERROR = {result}")
        told(result, port)
        sock.close()

    join(fork("client", client))


@situation("a socket that does not wait is refused, and asks connect() again")
def nonblocking_asked_again():
    def client(_):
        sock, port = bound(tcp())
        sock.setblocking(False)
        call(f"connect = {name(sock.connect_ex(CLOSED))}")
        result = name(sock.connect_ex(CLOSED))
        call(f"connect = {result}")
        told(result, port)
        sock.close()

    join(fork("client", client))


@situation("one socket connects twice")
def connects_twice():
    def client(_):
        sock = dial(to)
        # The library knows no AF_UNSPEC.
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.connect(sock.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16) == 0
        call("connect AF_UNSPEC = 0")
        connect(sock, to)
        client_closes(sock, None)

    listener = listen()
    to = listener.getsockname()
    child = fork("client", client)
    first, port = accept(listener)
    try:
        until_end(first)
    except OSError as error:
        call(f"recv = {name(error.errno)}")
    first.close()
    ended(port, None)
    second, port = accept(listener)
    server_follows(second, port)
    join(child)


@situation("TCP Fast Open: the SYN carries data")
def fast_open():
    def client(_):
        sock = tcp()
        sent = sock.sendto(b"early", socket.MSG_FASTOPEN, to)
        call(f"sendto MSG_FASTOPEN = {sent}")
        attempt(sock, "0")
        sock.shutdown(socket.SHUT_WR)
        until_end(sock)
        sock.close()

    listener = listen(fastopen=True)
    to = listener.getsockname()
    child = fork("client", client)
    sock, port = accept(listener)
    server_follows(sock, port)
    join(child)


@situation("TCP Fast Open: connect() waits for data that never comes")
def fast_open_unused():
    def client(_):
        sock = tcp()
        sock.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
        call(f"connect = {name(sock.connect_ex(to))}")
        attempt(sock, "closed")
        sock.close()

    listener = listen(fastopen=True)
    to = listener.getsockname()
    join(fork("client", client))


@situation("TCP Fast Open is asked for at a port where nobody listens")
def fast_open_refused():
    def client(_):
        sock, port = bound(tcp())
        try:
            sock.sendto(b"early", socket.MSG_FASTOPEN, CLOSED)
        except OSError as error:
            call(f"sendto MSG_FASTOPEN = {name(error.errno)}")
            told(name(error.errno), port)
        sock.close()

    join(fork("client", client))


@situation("two processes share a port by SO_REUSEPORT")
def reuseport():
    def worker(talk):
        sock = listen(port=port_number, reuse=True)
        talk.sendall(b".")
        connection, port = accept(sock)
        # The other one gets the next.
        sock.close()
        until_end(connection)
        connection.close()
        ended(port, ME)

    holder = tcp()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", 0))
    port_number = holder.getsockname()[1]
    children = [fork(f"worker {number}", worker) for number in (1, 2)]
    for child in children:
        child[0].recv(1)
    holder.close()

    def client(_):
        for _ in range(2):
            sock = dial(("127.0.0.1", port_number))
            sock.shutdown(socket.SHUT_WR)
            until_end(sock)
            sock.close()

    join(fork("client", client))
    for child in children:
        join(child)


@situation("a child of the listening process accepts and closes")
def accepted_by_child():
    def worker(_):
        sock, port = accept(listener)
        server_follows(sock, port)

    listener = listen()
    child = fork("worker", worker)
    client = fork("client", lambda talk: client_closes(dial(listener.getsockname()), talk))
    join(client)
    join(child)


@situation("the process that accepts forks, and its child serves")
def served_by_child():
    listener = listen()
    client = fork("client", lambda talk: client_closes(dial(listener.getsockname()), talk))
    sock, port = accept(listener)

    def worker(talk):
        talk.recv(1)
        server_follows(sock, port)

    child = fork("worker", worker)
    sock.close()
    child[0].sendall(b".")
    join(client)
    join(child)


@situation("the server closes last what its child served")
def closed_by_parent():
    listener = listen()
    client = fork("client", lambda talk: client_closes(dial(listener.getsockname()), talk))
    sock, port = accept(listener)

    def worker(_):
        until_end(sock)
        sock.close()

    join(fork("worker", worker))
    sock.close()
    ended(port, ME)
    join(client)


@situation("a connection is passed to another process, which serves and closes it")
def passed_on():
    def worker(talk):
        _, fds, _, _ = socket.recv_fds(talk, 1, 1)
        sock = socket.socket(fileno=fds[0])
        port = sock.getpeername()[1]
        talk.sendall(b".")
        talk.recv(1)
        server_follows(sock, port)

    listener = listen()
    child = fork("worker", worker)
    client = fork("client", lambda talk: client_closes(dial(listener.getsockname()), talk))
    sock, _ = accept(listener)
    socket.send_fds(child[0], [b"."], [sock.fileno()])
    child[0].recv(1)
    sock.close()
    child[0].sendall(b".")
    join(client)
    join(child)


@situation("the client forks after connect(), and its child closes")
def client_forks():
    def client(talk):
        sock = dial(to)
        talk.sendall(b".")

        def heir(talk):
            talk.recv(1)
            client_closes(sock, talk)

        child = fork("heir", heir)
        sock.close()
        child[0].sendall(b".")
        join(child)

    listener = listen()
    to = listener.getsockname()
    child = fork("client", client)
    sock, port = accept(listener)
    child[0].recv(1)
    server_follows(sock, port)
    join(child)


@situation("the client passes its connection to another process, which closes it")
def client_passes():
    def taker(talk):
        _, fds, _, _ = socket.recv_fds(talk, 1, 1)
        talk.sendall(b".")
        client_closes(socket.socket(fileno=fds[0]), talk)

    other = fork("taker", taker)

    def client(talk):
        sock = dial(to)
        socket.send_fds(other[0], [b"."], [sock.fileno()])
        other[0].recv(1)
        sock.close()

    listener = listen()
    to = listener.getsockname()
    child = fork("client", client)
    sock, port = accept(listener)
    join(child)
    server_follows(sock, port)
    join(other)


@situation("the listener closes before it accepted")
def never_accepted():
    def client(talk):
        listener.close()  # the copy that fork() made
        sock, port = bound(tcp())
        call(f"connect = {name(sock.connect_ex(to))}")
        told("0", port)
        talk.sendall(struct.pack("H", port))
        try:
            until_end(sock)
        except OSError as error:
            call(f"recv = {name(error.errno)}")
        sock.close()

    listener = listen()
    to = listener.getsockname()
    child = fork("client", client)
    (port,) = struct.unpack("H", child[0].recv(2))
    listener.close()
    ended(port, ME)
    join(child)


@situation("the listener's queue is full")
def queue_full():
    def client(talk):
        first, second = dial(to), dial(to)
        give_up(to)
        first.close()
        second.close()

    listener = listen(backlog=1)
    to = listener.getsockname()
    child = fork("client", client)
    join(child)
    for _ in range(2):
        sock, port = accept(listener)
        server_follows(sock, port)


def closed_to_scripted_data(acknowledged):
    """The other side is a few segments: data, which comes after close() and acknowledges so much of it."""

    def client(_):
        sock = begin(HOLE)
        me = sock.getsockname()
        sequence = next_sequence(sock)
        segment(HOLE, me, 1_000, 0, SYN)
        segment(HOLE, me, 1_001, sequence, ACK)
        fetched(sock)
        sock.close()
        segment(HOLE, me, 1_001, sequence + acknowledged, ACK, b"nobody reads this.")

    join(fork("client", client))


@situation("data comes after close(), before the FIN is acknowledged")
def closed_before_data():
    closed_to_scripted_data(0)


@situation("data comes after close(), with the acknowledgement of the FIN")
def closed_with_data():
    closed_to_scripted_data(1)


@situation("nobody answers an established connection any more")
def peer_vanishes():
    def client(_):
        sock = begin(HOLE)
        me = sock.getsockname()
        sequence = next_sequence(sock)
        segment(HOLE, me, 1_000, 0, SYN)
        segment(HOLE, me, 1_001, sequence, ACK)
        fetched(sock)
        sock.setsockopt(socket.IPPROTO_TCP, 18, 700)  # TCP_USER_TIMEOUT
        sock.setblocking(True)
        sock.sendall(b"x")
        try:
            sock.recv(1)
        except OSError as error:
            call(f"recv = {name(error.errno)}")
        sock.close()

    join(fork("client", client))


@situation("another process kills the connection (ss --kill)")
def killed_by_another():
    def client(sock, talk):
        talk.sendall(b".")
        try:
            until_end(sock)
        except OSError as error:
            call(f"recv = {name(error.errno)}")
        sock.close()

    listener = listen()
    to = listener.getsockname()
    child = fork("client", lambda talk: client(dial(to), talk))
    sock, port = accept(listener)
    child[0].recv(1)
    subprocess.run(["ss", "-K", "-t", "dst", "127.0.0.1", "dport", "=", str(to[1])], capture_output=True, check=True)
    join(child)
    try:
        until_end(sock)
    except OSError as error:
        call(f"recv = {name(error.errno)}")
    sock.close()
    ended(port, None)


def main():
    if len(sys.argv) < 2:
        for key, (title, _) in SITUATIONS.items():
            print(f"{key} {title}")
        return
    sniffer = listen_to_resets()
    before = counters()
    SITUATIONS[sys.argv[1]][1]()
    after = counters()
    ACCOUNT["resets"] = resets(sniffer)
    ACCOUNT["counters"] = {key: after[key] - before[key] for key in after}
    print(json.dumps(ACCOUNT), flush=True)


main()
