"""Above `verify`: what is asked of a program after its tests passed."""
