"""What the tests in guests stand on: packages, the initial file system, a guest, a pair of them."""
