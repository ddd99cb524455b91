"""A foreign program: pre-forked workers serve, clients connect, and everybody keeps his own count.

Arguments: connections in all, workers, clients. Half of the connections are IPv4, half IPv6. Prints one JSON object:
what each process did, by its own count.
"""

import json
import os
import socket
import sys

total, workers, clients = (int(word) for word in sys.argv[1:4])
listeners = [
    socket.create_server(("127.0.0.1", 0), backlog=4096),
    socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=4096),
]
ports = [listener.getsockname()[1] for listener in listeners]


def fork(work):
    """Runs work() in a child; gives the child's pid and the end of a pipe that its result comes out of."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(out)
        os.write(into, json.dumps(work()).encode())
        os._exit(0)
    os.close(into)
    return pid, out


def serve():
    import select

    accepted = 0
    for listener in listeners:
        listener.setblocking(False)
    poller = select.poll()
    for listener in listeners:
        poller.register(listener, select.POLLIN)
    poller.register(stop_out, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == stop_out:
                return accepted
            listener = listeners[0] if fd == listeners[0].fileno() else listeners[1]
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue  # another worker was faster
            connection.setblocking(True)
            assert connection.recv(4) == b"ping"
            connection.sendall(b"pong")
            assert connection.recv(1) == b""
            connection.close()
            accepted += 1


def connect(first, share):
    for number in range(first, first + share):
        address = [("127.0.0.1", ports[0]), ("::1", ports[1])][number % 2]
        connection = socket.create_connection(address)
        connection.sendall(b"ping")
        assert connection.recv(4) == b"pong"
        connection.close()
    return share


stop_out, stop_into = os.pipe()
serving = [fork(serve) for _ in range(workers)]
bounds = [total * number // clients for number in range(clients + 1)]
connecting = [
    fork(lambda first=first, end=end: connect(first, end - first)) for first, end in zip(bounds, bounds[1:])
]


def results(children):
    counts = {}
    for pid, out in children:
        counts[pid] = json.loads(os.read(out, 4096))
        assert os.waitpid(pid, 0)[1] == 0
    return counts


made = results(connecting)
os.write(stop_into, b"x" * workers)
served = results(serving)
print(json.dumps({"ports": ports, "connected": made, "accepted": served}))
