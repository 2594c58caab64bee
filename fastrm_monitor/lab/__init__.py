"""Makes proxies and proves them: teacher, distillation, evaluation. Nothing here runs while answers are served."""
