"""The results of `models.kernels.standstill`, one VM at a time, with every sample kept."""

STILL, MOVED, UNKNOWN = 0, 1, -1


class VcpusTwin:
    """One VM's vCPUs.

    `standing` are the samples since the others last moved, each as the set of vCPUs that gained
    anything; `life_others` and `life_whole` are the inputs of a gap model.
    """

    def __init__(self, *, idle_ns):
        self.idle_ns = idle_ns
        self.limit_ns = idle_ns
        self.times = None
        self.standing = []
        self.whole_stood = False

    def learn_one(self, times, *, judged, broken, rests):
        """Return (input of others, of all) and (sign of others, of all); sign None is unknown.

        `times` has None for a missing vCPU; [] is a VM without reported vCPUs.
        """
        nothing = (UNKNOWN, UNKNOWN), (None, None)
        self.limit_ns = self.idle_ns if rests else 0.0
        if not times and not broken:
            return nothing
        before = self.times or []
        if broken or not self._comparable(before, times):
            self.times = list(times)
            self.standing, self.whole_stood = [], False
            return nothing
        if not judged:
            return nothing
        self.times = list(times)
        gains = {
            number: now - was
            for number, (was, now) in enumerate(zip(before, times, strict=True))
            if now is not None
        }
        if not gains:
            return nothing
        (others, others_sign), (whole, whole_sign) = (UNKNOWN, None), self._whole(gains)
        if len(gains) > 1:
            others, others_sign = self._others(gains)
        return (others, whole), (others_sign, whole_sign)

    def _comparable(self, before, times):
        if not times or len(before) != len(times):
            return False
        pairs = list(zip(before, times, strict=True))
        if any((was is None) != (now is None) for was, now in pairs):
            return False
        return all(was is None or now >= was for was, now in pairs)

    def _whole(self, gains):
        if not any(gains.values()):
            self.whole_stood = True
            return STILL, False
        stood, self.whole_stood = self.whole_stood, False
        is_idle = max(gains.values()) <= self.limit_ns
        return MOVED, self._sign(is_idle, stood)

    def _others(self, gains):
        moved = {number for number, gain in gains.items() if gain}
        if len(set().union(*self.standing, moved)) <= 1:
            self.standing.append(moved)
            return STILL, False
        stood, self.standing = bool(self.standing), []
        second = sorted(gains.values())[-2]
        return MOVED, self._sign(second <= self.limit_ns, stood)

    def _sign(self, is_idle, stood):
        """Return how a gap model counts a move: as life, or as the early end of a standstill."""
        return True if is_idle else "cut short" if stood else None
