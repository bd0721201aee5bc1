"""What stage 3 is made of: sampled and judged programs, and the policy that learns from them."""
