output "storage" {
  description = "Where the storage tree is kept besides the data disk: HEALTH_PREDICT_STORAGE__REMOTE. New batches are put below incoming/ there."
  value       = "s3://${module.storage.bucket}/storage"
}

output "repositories" {
  description = "Where images are pushed, by name."
  value       = module.registry.urls
}

output "instance_id" {
  description = "The machine."
  value       = module.machine.instance_id
}

output "shell" {
  description = "A shell on the machine, without SSH."
  value       = "aws ssm start-session --region ${var.region} --target ${module.machine.instance_id}"
}

output "api" {
  description = "The API on http://127.0.0.1:8000 of your own machine, while this runs."
  value       = "aws ssm start-session --region ${var.region} --target ${module.machine.instance_id} --document-name AWS-StartPortForwardingSession --parameters portNumber=${var.api_port},localPortNumber=8000"
}

output "secrets" {
  description = "Where secrets go: SecureString parameters below this path, each named as its environment variable."
  value       = "/${var.name}/"
}

output "log_group" {
  description = "CloudWatch log group of the machine's start-up, runs and services."
  value       = module.machine.log_group
}

output "policies" {
  description = "What the machine may do, statement by statement."
  value       = module.identity.statements
}
