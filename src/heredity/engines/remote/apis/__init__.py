"""The APIs that the remote engine speaks. One file each."""
