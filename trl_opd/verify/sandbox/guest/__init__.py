"""What runs inside the sandbox. These modules import each other as top-level modules and nothing else of ours."""
