"""The comparison of QRBD with other ways to reach a disk. `main` is the way in; Python's standard library is all it needs."""
