"""The attacks that ship: keep the rows and jitter them, a mixture of normals, the release's own family."""
