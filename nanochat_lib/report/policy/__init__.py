"""What a report says of stage 3: whether the policy became better, how, and at what cost."""
