output "arns" { value = [for o in aws_ecr_repository.this : o.arn] }
output "urls" { value = { for k, o in aws_ecr_repository.this : k => o.repository_url } }
output "host" { value = split("/", values(aws_ecr_repository.this)[0].repository_url)[0] }
output "repositories" { value = aws_ecr_repository.this }
