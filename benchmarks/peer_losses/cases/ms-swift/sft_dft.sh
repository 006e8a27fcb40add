swift sft --model model --model_type llama --template qwen --dataset rows/chat/train.jsonl --enable_dft_loss true \
    --tuner_type full --learning_rate 3e-3 --lr_scheduler_type linear \
    --torch_dtype float32 --fp16 false --bf16 false --max_length 512 --gradient_checkpointing false \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --num_train_epochs 5 \
    --logging_steps 1 --save_strategy no --split_dataset_ratio 0 --report_to none --output_dir out
