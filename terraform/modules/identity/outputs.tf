output "instance_profile" { value = aws_iam_instance_profile.machine.name }
output "statements" { value = jsondecode(aws_iam_role_policy.machine.policy).Statement }
