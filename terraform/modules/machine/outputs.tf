output "instance_id" { value = aws_instance.this.id }
output "log_group" { value = aws_cloudwatch_log_group.machine.name }
output "log_group_arn" { value = aws_cloudwatch_log_group.machine.arn }
output "user_data" { value = local.user_data }
output "instance" { value = aws_instance.this }
output "data_disk" { value = aws_ebs_volume.data }
