"""The sections of the configuration tree; import them from `nanochat_lib.config`."""
