from recipes.trainers.late_peft import import_peft_late

import_peft_late()  # before any module here imports transformers' trainers
