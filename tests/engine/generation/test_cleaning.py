from __future__ import annotations

import pytest

from engine.generation.lease import lease
from engine.generation.objects import open_objects


@pytest.mark.parametrize("cut", ["get", "remove"])
def test_a_lease_is_given_back_also_where_a_signal_comes_while_it_is(cut, monkeypatch):
    objects = open_objects(f"memory://cleaning-{cut}")
    whole, cuts = getattr(type(objects), cut), []

    def cut_off(self, *arguments):
        if not cuts:
            cuts.append(arguments)
            raise KeyboardInterrupt
        return whole(self, *arguments)

    with pytest.raises(KeyboardInterrupt):
        with lease(objects, "leases/1.json", "It"):
            assert objects.names("leases") == ["1.json"]
            monkeypatch.setattr(type(objects), cut, cut_off)
    assert len(cuts) == 1 and objects.names("leases") == []
