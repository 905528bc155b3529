from __future__ import annotations
from executor.broker import keys, scripts
from executor.broker.connection import connect_sync
class Lease:
    def __init__(self, config, address, held, crew, master, describe):
        self.a=(config,address,held,crew,master,describe)
    def start(self):
        config,address,held,crew,master,describe=self.a
        c=connect_sync(address)
        s=scripts.Scripts(c)
        s.run("register",[keys.LEASES,keys.WORKERS,keys.tomb(held.worker),keys.OBITUARIES,keys.inflight(held.worker),keys.control(held.worker)],["join",held.worker,describe()])
    def leave(self): pass
    def on_tomb(self, w): pass
