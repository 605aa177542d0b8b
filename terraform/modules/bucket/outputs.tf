output "id" { value = aws_s3_bucket.this.id }
output "arn" { value = aws_s3_bucket.this.arn }
output "policy" { value = jsondecode(aws_s3_bucket_policy.this.policy) }
output "public_access_block" { value = aws_s3_bucket_public_access_block.this }
output "versioning" { value = aws_s3_bucket_versioning.this.versioning_configuration[0].status }
output "encryption" {
  value = one([for o in aws_s3_bucket_server_side_encryption_configuration.this.rule : one(o.apply_server_side_encryption_by_default).sse_algorithm])
}
