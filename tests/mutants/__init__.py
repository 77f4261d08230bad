"""Whether the tests see changes of the code: `make test-mutants`."""
