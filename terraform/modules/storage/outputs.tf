output "key_arn" { value = aws_kms_key.this.arn }
output "key_policy" { value = local.key_policy }
output "bucket" { value = module.data.id }
output "bucket_arn" { value = module.data.arn }
output "buckets" { value = { data = module.data, logs = module.logs } }
