output "subnet_id" { value = var.nat ? aws_subnet.private.id : aws_subnet.public.id }
output "zone" { value = (var.nat ? aws_subnet.private : aws_subnet.public).availability_zone }
output "security_group" { value = aws_security_group.machine.id }
output "flow_policy" { value = jsondecode(aws_iam_role_policy.flow.policy) }
output "ingress" { value = aws_vpc_security_group_ingress_rule.api }
output "public_address" { value = (var.nat ? aws_subnet.private : aws_subnet.public).map_public_ip_on_launch }
