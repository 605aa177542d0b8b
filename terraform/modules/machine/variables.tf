variable "name" { type = string }
variable "region" { type = string }
variable "aws" { type = string }
variable "account" { type = string }
variable "ami" { type = string }
variable "instance_type" { type = string }
variable "root_gb" { type = number }
variable "data_gb" { type = number }
variable "subnet_id" { type = string }
variable "zone" { type = string }
variable "security_group" { type = string }
variable "instance_profile" { type = string }
variable "key_arn" { type = string }
variable "bucket" { type = string }
variable "registry" { type = string }
variable "repository" { type = string }
variable "release" { type = object({ url = string, sha256 = string }) }
variable "minikube" { type = object({ version = string, sha256 = string }) }
variable "agents" {
  type = object({ ssm = object({ version = string, sha256 = string }), cloudwatch = object({ version = string, sha256 = string }) })
}
variable "schedule" { type = string }
variable "mlflow" { type = bool }
variable "api_host" { type = string }
variable "api_port" { type = number }
variable "node_port" { type = number }
variable "settings" { type = map(string) }
variable "alarm_email" { type = string }
variable "silent_days" { type = number }
variable "retention" { type = number }
variable "protect" { type = bool }
