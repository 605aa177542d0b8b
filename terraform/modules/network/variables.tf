variable "name" { type = string }
variable "region" { type = string }
variable "cidr" { type = string }
variable "nat" { type = bool }
variable "inbound_cidrs" { type = list(string) }
variable "api_port" { type = number }
variable "key_arn" { type = string }
variable "retention" { type = number }
