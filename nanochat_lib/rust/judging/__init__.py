"""What happens below `verify`: what a program may share, compiling it, running it."""
