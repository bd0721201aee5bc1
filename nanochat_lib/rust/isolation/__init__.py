"""What happens below the sandbox: confining a process, and the process that starts them."""
