swift sft --model model --model_type llama --template qwen2_5 --dataset rows/chat/train.jsonl --use_dora true \
    --tuner_type lora --lora_rank 4 --lora_alpha 8 --lora_dropout 0 --target_modules q_proj v_proj down_proj --learning_rate 1e-2 \
    --torch_dtype float32 --fp16 false --bf16 false --max_length 512 --gradient_checkpointing false \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --num_train_epochs 5 \
    --logging_steps 1 --save_strategy no --split_dataset_ratio 0 --report_to none --output_dir out
