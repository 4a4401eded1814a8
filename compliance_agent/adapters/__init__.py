"""The machine's hands: they do the I/O and turn every foreign error into one of ours."""
