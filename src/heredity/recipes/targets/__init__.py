"""Models that need no download: named by reference, asked where they are. One file each."""
