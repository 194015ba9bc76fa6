"""What to boot: the policy (decide), the firmware tables, the one namespace (resolve), rendered files."""
