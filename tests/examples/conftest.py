# The tests inside an example need the example in place; the tests of this folder plant it.
collect_ignore_glob = ["*/*"]
