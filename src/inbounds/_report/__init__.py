"""What reads weights and changes none: audits, reports, the monitor and the pressure of bounds."""
